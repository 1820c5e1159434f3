"""Pydantic's findings in our words, each with the part of the document that it is about."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from qemu_ring.guestfile.source import Path

__all__ = ["mistakes"]


def mistakes(
    error: ValidationError, data: Mapping[str, Any], model: type[BaseModel], at: Path = ()
) -> Iterator[tuple[Path, str]]:
    """All that a validation found.

    Args:
        error: what pydantic raised.
        data: what was validated.
        model: against which.
        at: where in the document it stands.
    """
    for one in error.errors(include_url=False):
        path = _within(data, one["loc"])
        yield (*at, *path), _message(one["type"], one["msg"], one["input"], path, model)


def _message(kind: str, said: str, given: Any, path: Path, model: type[BaseModel]) -> str:
    if kind == "missing":
        return "is missing"
    if kind == "extra_forbidden":
        return f"unknown key; known: {', '.join(_known(model, path[:-1]))}"
    if kind != "guest":  # those of our own validators are complete
        said = said.replace("Input should", "must")
        if isinstance(given, (str, int, float)) or given is None:
            said += f", not {'nothing' if given is None else repr(given)}"
    return said[:1].lower() + said[1:]


def _within(data: Any, location: tuple[str | int, ...]) -> Path:
    """The steps of pydantic's location that are in the document: not the names of types.

    The last step is kept where it is a key that is missing.
    """
    path: Path = ()
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


def _known(model: type[BaseModel], path: Path) -> list[str]:
    """The keys that a part may have."""
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
