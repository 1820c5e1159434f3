"""What an experiment varies: axes, their values, and the combinations that it asks for."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from qemu_ring.guestfile.source import Path

__all__ = ["Assignment", "Combination", "MatrixError", "combinations", "label_of"]

MOST_CELLS = 100_000
_STEP = re.compile(r"[^.\[\]]+")
_KEY = re.compile(r"[^.\[\]]+(\.[^.\[\]]+|\[\d+\])*")


class MatrixError(Exception):
    """A mistake, and where in the document it is."""

    def __init__(self, path: Path, message: str) -> None:
        super().__init__(message)
        self.path = path
        self.message = message


@dataclass(frozen=True, slots=True)
class Assignment:
    """A part of the document that a combination sets.

    Args:
        target: which part.
        value: to what.
        origin: where the value stands in the document.
    """

    target: Path
    value: Any
    origin: Path


@dataclass(frozen=True, slots=True)
class Combination:
    """One value of each axis.

    Args:
        axes: the value's label, by axis.
        assignments: what they set.
        origin: where in the document it comes from, for messages about all of it.
    """

    axes: Mapping[str, str]
    assignments: tuple[Assignment, ...]
    origin: Path


@dataclass(frozen=True, slots=True)
class _Axis:
    key: str
    target: Path | None
    values: dict[str, tuple[Assignment, ...]] = field(default_factory=dict)


def combinations(
    matrix: Mapping[str, Any],
    include: Sequence[Mapping[str, Any]],
    exclude: Sequence[Mapping[str, Any]],
    parts: Sequence[str],
) -> list[Combination]:
    """All combinations of the matrix but those excluded; then those included.

    Args:
        matrix: by axis: a list of values for a key of the document, or named values for it,
            or, under a word of one's own, named variants that each set several keys.
        include: axes and other keys with their values; axes left out stay as in the document.
        exclude: axes with a value, or a list of values.
        parts: what the document's keys begin with.

    Raises:
        MatrixError: a mistake in one of them.
    """
    axes = {key: _axis(key, values, parts) for key, values in matrix.items()}
    excluded = [_Exclusion(one, axes, ("exclude", i)) for i, one in enumerate(exclude)]
    found = []
    count = math.prod(len(axis.values) for axis in axes.values())
    if count > MOST_CELLS:
        raise MatrixError(
            ("matrix",), f"has {count:,} combinations; {MOST_CELLS:,} are the most that can be"
        )
    if axes or not include:
        for labels in itertools.product(*(axis.values for axis in axes.values())):
            chosen = dict(zip(axes, labels, strict=True))
            if not any([exclusion.matches(chosen) for exclusion in excluded]):  # noqa: C419
                found.append(Combination(chosen, tuple(_chosen(axes, chosen)), ("matrix",)))
    for exclusion in excluded:
        exclusion.require_used()
    found += [_included(one, axes, parts, ("include", index)) for index, one in enumerate(include)]
    if not found:
        raise MatrixError(("exclude",), "leaves nothing to run")
    return found


def label_of(value: Any) -> str | None:
    """How a value is called; None for one that needs a name."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if value is None:
        return "none"
    return str(value) if isinstance(value, (str, int, float)) else None


def _chosen(axes: Mapping[str, _Axis], labels: Mapping[str, str]) -> Iterator[Assignment]:
    for key, label in labels.items():
        yield from axes[key].values[label]


def _target(key: str, parts: Sequence[str]) -> Path | None:
    """The part of the document that a key names; None if it is a word of the user's own."""
    if not _KEY.fullmatch(key):
        return None
    path: Path = tuple(int(s) if s.isdecimal() else s for s in _STEP.findall(key))
    return path if path[0] in parts else None


def _axis(key: str, values: Any, parts: Sequence[str]) -> _Axis:
    at: Path = ("matrix", key)
    target = _target(key, parts)
    axis = _Axis(key, target)
    if isinstance(values, list) and values:
        if target is None:
            raise MatrixError(at, _no_such_key(key, parts))
        for index, value in enumerate(values):
            label = label_of(value)
            if label is None:
                raise MatrixError(
                    (*at, index), "such a value needs a name: {name: value, name: value}"
                )
            if label in axis.values:
                raise MatrixError((*at, index), f"{label} is there twice")
            axis.values[label] = (Assignment(target, value, (*at, index)),)
    elif isinstance(values, dict) and values:
        for label, value in values.items():
            where = (*at, label)
            if target is not None:
                axis.values[label] = (Assignment(target, value, where),)
            else:
                axis.values[label] = tuple(_variant(value, parts, where))
    else:
        raise MatrixError(at, "needs a list of values, or named ones: {name: value}")
    return axis


def _variant(value: Any, parts: Sequence[str], at: Path) -> Iterator[Assignment]:
    """What a named variant sets."""
    if not isinstance(value, dict) or not value:
        raise MatrixError(
            at, "a variant is a mapping of keys, such as {migration.throttle: auto-converge}"
        )
    for key, given in value.items():
        target = _target(key, parts)
        if target is None:
            raise MatrixError((*at, key), _no_such_key(key, parts))
        yield Assignment(target, given, (*at, key))


def _included(
    wanted: Mapping[str, Any], axes: Mapping[str, _Axis], parts: Sequence[str], at: Path
) -> Combination:
    labels: dict[str, str] = {}
    assignments: list[Assignment] = []
    if not wanted:
        raise MatrixError(at, "includes nothing")
    for key, value in wanted.items():
        where = (*at, key)
        label = label_of(value)
        axis = axes.get(key)
        if axis is not None and label in axis.values:
            assert label is not None
            assignments += axis.values[label]
        elif (target := _target(key, parts)) is not None:
            if label is None:
                raise MatrixError(where, "such a value needs a name: put it into the matrix")
            assignments.append(Assignment(target, value, where))
        elif axis is not None:
            raise MatrixError(where, f'no variant "{value}"; known: {", ".join(axis.values)}')
        else:
            raise MatrixError(where, _no_such_key(key, parts))
        labels[key] = label
    return Combination(labels, tuple(assignments), at)


class _Exclusion:
    """Combinations to leave out."""

    def __init__(self, given: Mapping[str, Any], axes: Mapping[str, _Axis], at: Path) -> None:
        self._at = at
        self._used = False
        self._labels: dict[str, set[str]] = {}
        if not given:
            raise MatrixError(at, "would exclude everything")
        for key, wanted in given.items():
            if key not in axes:
                known = ", ".join(axes) or "none"
                raise MatrixError((*at, key), f"is no axis of the matrix; axes: {known}")
            labels = self._labels[key] = set()
            for one in wanted if isinstance(wanted, list) else [wanted]:
                label = label_of(one)
                if label not in axes[key].values:
                    known = ", ".join(axes[key].values)
                    raise MatrixError((*at, key), f"{one!r} is none of the axis' values: {known}")
                labels.add(label)

    def matches(self, labels: Mapping[str, str]) -> bool:
        matched = all(labels[key] in wanted for key, wanted in self._labels.items())
        self._used = self._used or matched
        return matched

    def require_used(self) -> None:
        if not self._used:
            raise MatrixError(self._at, "excludes nothing")


def _no_such_key(key: str, parts: Sequence[str]) -> str:
    return f"{key} is no key of the experiment; they begin with {', '.join(parts)}"
