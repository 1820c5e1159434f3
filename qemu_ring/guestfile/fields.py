"""What descriptions are made of: parts, and kinds of values: sizes, words, paths, tracking."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

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

__all__ = [
    "ExistingFile",
    "ExistingFolder",
    "FirmwarePattern",
    "GuestPattern",
    "Part",
    "Policy",
    "Property",
    "Size",
    "TrackingMode",
    "wrong",
]

_SIZE = re.compile(r"(\d+)\s*(?:([KMGT])(?:iB)?)?")
_MOST_BYTES = (1 << 63) - 1  # what QEMU reckons with
_MOST_DIGITS = 100  # Python itself refuses to read numbers of thousands
_TOO_LARGE = "is more than 8 EiB"
_UNITS = {None: 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}


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


def _size(value: Any) -> int:
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return _known_size(value)
    found = _SIZE.fullmatch(value.strip()) if isinstance(value, str) else None
    if found is None:
        raise wrong(f"{value!r} is no size; bytes, or such as 64 MiB")
    if len(found[1]) > _MOST_DIGITS:
        raise wrong(_TOO_LARGE)
    return _known_size(int(found[1]) * _UNITS[found[2]])


def _known_size(size: int) -> int:
    if size > _MOST_BYTES:
        raise wrong(_TOO_LARGE)
    return size


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

Size = Annotated[
    int,
    BeforeValidator(_size),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "integer", "minimum": 0},
                {"type": "string", "pattern": rf"^\s*{_SIZE.pattern}\s*$"},
            ],
            "description": "Bytes, or with a unit: 64 MiB",
        }
    ),
]
"""Bytes."""


def _words(what: str, words: dict[str, Any]) -> tuple[BeforeValidator, WithJsonSchema]:
    """One of some words, each for a value."""

    def value_of(given: Any) -> Any:
        if given in words.values():
            return given
        if not isinstance(given, str) or given not in words:
            raise wrong(f'unknown {what} "{given}"; known: {", ".join(words)}')
        return words[given]

    return BeforeValidator(value_of), WithJsonSchema({"type": "string", "enum": list(words)})


def _by_name(patterns: Iterable[Pattern]) -> dict[str, Pattern]:
    return {pattern.name.lower().replace("_", "-"): pattern for pattern in patterns}


_pattern, _pattern_schema = _words("pattern", _by_name(Pattern))
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
