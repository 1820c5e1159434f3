"""A description from its file: parsed, checked, each mistake named with file, line and field."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from qemu_ring.errors import UsageError
from qemu_ring.guestfile import source
from qemu_ring.guestfile.errors import GuestFileError
from qemu_ring.guestfile.plan import problems
from qemu_ring.guestfile.schema import GuestDescription

__all__ = ["json_schema", "load_guest", "parse_guest"]


def load_guest(path: str | Path, assignments: Sequence[str] = ()) -> GuestDescription:
    """Read a guest's description from a YAML file.

    Args:
        path: the file.
        assignments: KEY=VALUE, put over what the file has, such as `workload.streams[0].seed=2`.

    Raises:
        GuestFileError: it cannot be right; its `problems` are one line each.
        UsageError: the file cannot be read.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise GuestFileError([f"{path}:1: no YAML: it is not UTF-8"]) from error
    directory = Path(path).absolute().parent
    return parse_guest(text, assignments, name=str(path), directory=directory)


def parse_guest(
    text: str,
    assignments: Sequence[str] = (),
    *,
    name: str = "guest",
    directory: Path | None = None,
) -> GuestDescription:
    """The same from a text.

    Args:
        text: YAML.
        assignments: as in `load_guest`.
        name: of the text, for messages.
        directory: what relative paths are seen from; None for the current one.

    Raises:
        GuestFileError: as in `load_guest`.
    """
    document = source.Source.parse(text, name)
    for assignment in assignments:
        document.set(assignment)
    try:
        guest = GuestDescription.model_validate(document.data, context=directory)
    except ValidationError as error:
        found = error.errors(include_url=False)
        raise document.error(_problem(document, dict(one)) for one in found) from None
    wrong = list(problems(guest))
    if wrong:
        raise document.error(wrong)
    return guest


def json_schema() -> dict[str, Any]:
    """The JSON Schema of a description, for editors."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **GuestDescription.model_json_schema(),
    }


def _problem(document: source.Source, error: dict[str, Any]) -> tuple[source.Path, str]:
    """One of pydantic's findings: where, and what in our words."""
    kind, given = error["type"], error["input"]
    path = _within(document.data, error["loc"])
    if kind == "missing":
        return path, "is missing"
    if kind == "extra_forbidden":
        return path, f"unknown key; known: {', '.join(_known(path[:-1]))}"
    message = str(error["msg"])
    if kind != "guest":
        message = message.replace("Input should", "must")
        if isinstance(given, (str, int, float)) or given is None:
            message += f", not {'nothing' if given is None else repr(given)}"
    return path, message[:1].lower() + message[1:]


def _within(data: Any, location: Sequence[str | int]) -> source.Path:
    """The steps of a pydantic location that are in the document: not names of types.

    The last step is kept where it is a key that is missing.
    """
    path: source.Path = ()
    for index, step in enumerate(location):
        if isinstance(data, dict):
            if step in data:
                data = data[step]
            elif index < len(location) - 1:
                continue
            else:
                data = None
        elif isinstance(data, list) and isinstance(step, int) and step < len(data):
            data = data[step]
        else:
            continue
        path = (*path, step)
    return path


def _known(path: source.Path) -> list[str]:
    """The keys that a part may have."""
    model: type[BaseModel] = GuestDescription
    for step in path:
        for name, field in model.model_fields.items():
            if step in (field.alias, name):
                model = _model_of(field.annotation) or model
    return [field.alias or name for name, field in model.model_fields.items()]


def _model_of(annotation: Any) -> type[BaseModel] | None:
    """The model within an annotation such as `list[SlotPart]` or `LinuxPart | None`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((found for one in get_args(annotation) if (found := _model_of(one))), None)
