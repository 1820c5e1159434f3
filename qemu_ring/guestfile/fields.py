"""What descriptions are made of: parts, and kinds of values: sizes, words, paths, tracking."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    PlainValidator,
    ValidationInfo,
    WithJsonSchema,
)
from pydantic_core import PydanticCustomError

from qemu_ring.dirty import Tracking
from qemu_ring.errors import UsageError
from qemu_ring.guest import Pattern
from qemu_ring.guest.linux import LinuxPattern
from qemu_ring.memslot import FlushPolicy
from qemu_ring.sizes import (
    DURATION_PATTERN,
    MOST_BYTES,
    RATE_PATTERN,
    SIZE_PATTERN,
    parse_duration,
    parse_rate,
    parse_size,
)

__all__ = [
    "ExistingFile",
    "ExistingFolder",
    "FirmwarePattern",
    "GuestPattern",
    "Number",
    "Part",
    "Policy",
    "Property",
    "Rate",
    "Seconds",
    "Size",
    "TrackingMode",
    "wrong",
]


T = TypeVar("T")


class Part(BaseModel):
    """A part of a description: its keys have dashes, and there are no others."""

    model_config = ConfigDict(
        strict=True,
        frozen=True,
        extra="forbid",
        allow_inf_nan=False,
        alias_generator=lambda name: name.replace("_", "-"),
        populate_by_name=True,
        use_attribute_docstrings=True,
    )


def wrong(message: str) -> PydanticCustomError:
    """What a validator raises; the message is shown as it is."""
    return PydanticCustomError("guest", "{message}", {"message": message})


def _parsed(parse: Callable[[str], T], value: str) -> T:
    try:
        return parse(value)
    except UsageError as error:
        raise wrong(str(error)) from error


def _bytes(parse: Callable[[str], int]) -> Callable[[Any], int]:
    def read(value: Any) -> int:
        if isinstance(value, bool) or not isinstance(value, (int, str)):
            raise wrong(f"{value!r} is no number of bytes; use such as 64 MiB")
        if isinstance(value, int) and value > MOST_BYTES:
            raise wrong("is too much; use less than 8 EiB")
        return _parsed(parse, str(value))

    return read


def _seconds(value: Any) -> Any:
    return _parsed(parse_duration, value) if isinstance(value, str) else _number(value)


def _number(value: Any) -> Any:
    """A whole number as one with a point, which strict floats want: 5 s are fine."""
    if not isinstance(value, int) or isinstance(value, bool):
        return value
    try:
        return float(value)
    except OverflowError:
        raise wrong("is far too large") from None


def _property(value: Any) -> str | int | bool:
    if not isinstance(value, (str, int)):
        raise wrong(f"{value!r} is no word, number or truth value")
    return value


Property = Annotated[
    str | int | bool,
    PlainValidator(_property),
    WithJsonSchema({"type": ["string", "integer", "boolean"]}),
]
"""The value of a QEMU option."""


def _amount_schema(kind: str, pattern: str, description: str) -> WithJsonSchema:
    plain = {"type": kind, "minimum": 0}
    text = {"type": "string", "pattern": pattern}
    return WithJsonSchema({"anyOf": [plain, text], "description": description})


Size = Annotated[
    int,
    BeforeValidator(_bytes(parse_size)),
    _amount_schema("integer", SIZE_PATTERN, "Bytes, or with a unit: 64 MiB, 1.5G"),
]
"""Bytes."""
Rate = Annotated[
    int,
    BeforeValidator(_bytes(parse_rate)),
    _amount_schema("integer", RATE_PATTERN, "Bytes a second, or with a unit: 50 MiB, 1.5G/s"),
]
"""Bytes a second."""
Number = Annotated[float, BeforeValidator(_number)]
Seconds = Annotated[
    float,
    BeforeValidator(_seconds),
    _amount_schema("number", DURATION_PATTERN, "Seconds, or with a unit: 300ms, 10min"),
]


def _words(what: str, words: dict[str, Any]) -> tuple[BeforeValidator, WithJsonSchema]:
    """One of some words, each for a value."""

    def value_of(given: Any) -> Any:
        if given in words.values():
            return given
        if not isinstance(given, str) or given not in words:
            raise wrong(f'unknown {what} "{given}"; known: {", ".join(words)}')
        return words[given]

    return BeforeValidator(value_of), WithJsonSchema({"type": "string", "enum": list(words)})


_pattern, _pattern_schema = _words("pattern", {pattern.word: pattern for pattern in Pattern})
FirmwarePattern = Annotated[Pattern, _pattern, _pattern_schema]

_linux, _linux_schema = _words("pattern", {pattern.value: pattern for pattern in LinuxPattern})
GuestPattern = Annotated[LinuxPattern, _linux, _linux_schema]

_policy, _policy_schema = _words("flush policy", {policy.value: policy for policy in FlushPolicy})
Policy = Annotated[FlushPolicy, _policy, _policy_schema]


def _tracking(value: Any) -> Tracking:
    if isinstance(value, Tracking):
        return value
    try:
        return Tracking.parse(str(value))
    except UsageError as error:
        raise wrong(str(error)) from error


TrackingMode = Annotated[
    Tracking,
    BeforeValidator(_tracking),
    WithJsonSchema({"type": "string", "pattern": r"^(bitmap(:no-manual-protect)?|ring:[0-9]+)$"}),
]


def _existing(value: Any, info: ValidationInfo, *, folder: bool) -> Path:
    if not isinstance(value, (str, Path)):
        raise wrong(f"{value!r} is no path")
    base = info.context or Path()
    path = Path(base, value).absolute()
    if not path.exists():
        raise wrong(f"{path} does not exist")
    if path.is_dir() != folder:
        raise wrong(f"{path} is {'no' if folder else 'a'} directory")
    return path


def _file(value: Any, info: ValidationInfo) -> Path:
    return _existing(value, info, folder=False)


def _folder(value: Any, info: ValidationInfo) -> Path:
    return _existing(value, info, folder=True)


ExistingFile = Annotated[Path, BeforeValidator(_file), WithJsonSchema({"type": "string"})]
"""A file; relative paths are seen from the description's directory."""
ExistingFolder = Annotated[Path, BeforeValidator(_folder), WithJsonSchema({"type": "string"})]
