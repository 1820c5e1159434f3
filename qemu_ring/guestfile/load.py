"""A description from its file: parsed, checked, each mistake named with file, line and field."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from qemu_ring.errors import UsageError
from qemu_ring.guestfile import source
from qemu_ring.guestfile.errors import GuestFileError
from qemu_ring.guestfile.interpretation import problems
from qemu_ring.guestfile.mistakes import mistakes
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
    document = source.YamlSource.parse(text, name)
    for assignment in assignments:
        document.set(assignment)
    try:
        guest = GuestDescription.model_validate(document.data, context=directory)
    except ValidationError as error:
        raise document.error(mistakes(error, document.data, GuestDescription)) from None
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
