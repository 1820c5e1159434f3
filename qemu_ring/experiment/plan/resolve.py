"""Cells of an experiment from its document: what each combination makes of it, and if that can be.

Cells have most of what they are in common. A guest, and all that is not the guest, is therefore
made and checked once for each combination of the axes that touch it; where its mistakes stand in
the file is looked up only when there are any.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from qemu_ring.dirty import Tracking
from qemu_ring.errors import UsageError
from qemu_ring.experiment.plan.cells import Cell, canonical, digest_of_parts
from qemu_ring.experiment.plan.matrix import Assignment, Combination
from qemu_ring.experiment.plan.migrations import migration_plan, plan_problem
from qemu_ring.experiment.plan.parameters import (
    Scalar,
    guest_parameters,
    named_by_parameters,
    part_parameters,
    with_axes,
)
from qemu_ring.experiment.plan.schema import CLEAR_CHUNK, CellPart, PlanPart
from qemu_ring.guest import Pattern
from qemu_ring.guestfile import GuestDescription, GuestFileError
from qemu_ring.guestfile.interpretation import problems as guest_problems
from qemu_ring.guestfile.mistakes import mistakes
from qemu_ring.guestfile.source import Path as DocumentPath
from qemu_ring.guestfile.source import YamlSource, dotted
from qemu_ring.migration import PlanError

__all__ = ["CellResolver"]

Problem = tuple[DocumentPath, str]
_Key = tuple[int, ...]
"""Which assignments, by their identities: combinations share them."""
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class _CellGuest:
    """A guest that cells have in common.

    Args:
        description: checked.
        data: as it stands in the document.
        text: the same, canonical JSON.
        directory: what its relative paths are seen from.
        parameters: of a cell with it.
        meaning: equal for guests that are the same, however they are written.
    """

    description: GuestDescription
    data: Mapping[str, Any]
    text: str
    directory: Path
    parameters: dict[str, Scalar]
    meaning: str


@dataclass(frozen=True, slots=True)
class _Rest:
    """All but the guest.

    Args:
        part: checked.
        data: for the process that runs it.
        texts: the same by key, canonical JSON.
        parameters: of a cell with it.
        meaning: equal for what comes to the same, the migration's plan for its keys.
    """

    part: CellPart
    data: Mapping[str, Any]
    texts: Mapping[str, str]
    parameters: dict[str, Scalar]
    meaning: tuple[object, ...]


class _MistakesError(Exception):
    """What is wrong with a combination, by the parts of the document.

    Args:
        problems: each with its part.
        of_all: whether no single field shows them.
    """

    def __init__(self, problems: Sequence[Problem], *, of_all: bool = False) -> None:
        super().__init__()
        self.problems = problems
        self.of_all = of_all


class CellResolver:
    """Makes cells, and gathers what is wrong with any of them.

    Args:
        document: the experiment.
        directory: what its relative paths are seen from.
    """

    def __init__(self, document: YamlSource, directory: Path) -> None:
        self._document = document
        self._directory = directory
        self._files: dict[Path, YamlSource] = {}
        self._guests: dict[_Key, _CellGuest | None] = {}
        self._rests: dict[_Key, _Rest | None] = {}
        self._names: dict[tuple[str, ...], list[str]] = {}
        plan_keys = {field.alias for field in PlanPart.model_fields.values()} | {"guest"}
        self._rest = {key: value for key, value in document.data.items() if key not in plan_keys}
        self._plans: dict[str, int] = {}
        self._found: dict[tuple[object, ...], str] = {}
        self.problems: list[str] = []

    def cell(self, wanted: Combination) -> Cell | None:
        """Resolve one combination; None if it has a problem."""
        of_guest = [one for one in wanted.assignments if one.target[0] == "guest"]
        of_rest = [one for one in wanted.assignments if one.target[0] != "guest"]
        guest_key, rest_key = tuple(map(id, of_guest)), tuple(map(id, of_rest))
        if guest_key not in self._guests:
            self._guests[guest_key] = self._noting(wanted, lambda: self._guest(of_guest))
        if rest_key not in self._rests:
            self._rests[rest_key] = self._noting(wanted, lambda: self._part(of_rest))
        guest, rest = self._guests[guest_key], self._rests[rest_key]
        if guest is None or rest is None:
            return None
        wrong = list(_together(guest.description, rest.part))
        if wrong:
            self._note(wanted, _MistakesError(wrong, of_all=True))
            return None
        axes = dict(wanted.axes)
        name = self._name(axes)
        meaning = (guest.meaning, *rest.meaning)
        if meaning in self._found:
            said = f"{name} comes to the same as {self._found[meaning]}: one of them is enough"
            self._note(wanted, _MistakesError([(wanted.origin, said)]))
            return None
        self._found[meaning] = name
        return Cell(
            id=digest_of_parts({"guest": guest.text, **rest.texts})[:12],
            name=name,
            axes=axes,
            parameters=with_axes({**guest.parameters, **rest.parameters}, axes),
            specification={
                "guest": guest.data,
                **rest.data,
                "directory": str(guest.directory),
            },
        )

    def _noting(self, wanted: Combination, make: Callable[[], T]) -> T | None:
        """What `make` gives; None if it has problems, which are noted."""
        try:
            return make()
        except _MistakesError as error:
            self._note(wanted, error)
        except GuestFileError as error:
            self.problems += error.problems
        return None

    def _note(self, wanted: Combination, error: _MistakesError) -> None:
        problems = list(error.problems)
        if error.of_all and wanted.axes:
            which = f" (in {self._name(wanted.axes)})"
            problems = [(path, said + which) for path, said in problems]
        try:
            self.problems += self._placed(wanted).error(problems).problems
        except GuestFileError as other:
            self.problems += other.problems

    def _guest(self, assignments: Sequence[Assignment]) -> _CellGuest:
        data = {"guest": copy.deepcopy(self._document.data.get("guest"))}
        for one in assignments:
            if one.target == ("guest",):
                _assign(data, one)
        directory = self._directory
        if isinstance(data["guest"], str):
            name = data["guest"]
            data["guest"] = copy.deepcopy(self._file(name).data)
            directory = Path(self._directory, name).parent
        for one in assignments:
            if one.target != ("guest",):
                _assign(data, one)
        guest = data["guest"]
        if not isinstance(guest, dict):
            said = "is missing" if guest is None else "must be a mapping, or the path of a file"
            raise _MistakesError([(("guest",), said)])
        try:
            description = GuestDescription.model_validate(guest, context=directory)
        except ValidationError as error:
            found = list(mistakes(error, guest, GuestDescription, ("guest",)))
            raise _MistakesError(found) from None
        wrong = [(("guest", *path), said) for path, said in guest_problems(description)]
        if wrong:
            raise _MistakesError(wrong, of_all=True)
        plain = description.model_copy(update={"tracking": description.tracking or Tracking()})
        return _CellGuest(
            description=description,
            data=guest,
            text=canonical(guest),
            directory=directory,
            parameters=guest_parameters(description),
            meaning=repr(plain),
        )

    def _part(self, assignments: Sequence[Assignment]) -> _Rest:
        data = copy.deepcopy(self._rest)
        for one in assignments:
            _assign(data, one)
        try:
            part = CellPart.model_validate(data, context=self._directory)
        except ValidationError as error:
            raise _MistakesError(list(mistakes(error, data, CellPart))) from None
        wrong = list(_of_part(part))
        if wrong:
            raise _MistakesError(wrong, of_all=True)
        told = part.model_dump(mode="json", by_alias=True)
        texts = {key: canonical(value) for key, value in told.items()}
        meaning = repr((migration_plan(part), part.migration.clear_chunk or CLEAR_CHUNK))
        plan = self._plans.setdefault(meaning, len(self._plans))
        others = (text for key, text in texts.items() if key != "migration")
        return _Rest(part, told, texts, part_parameters(part), (plan, *others))

    def _file(self, name: str) -> YamlSource:
        """A guest's file, read once.

        Raises:
            GuestFileError: it is none.
        """
        path = Path(self._directory, name)
        if path not in self._files:
            try:
                text = path.read_text(encoding="utf-8")
            except (OSError, UnicodeDecodeError) as error:
                said = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
                raise _MistakesError([(("guest",), f"{name}: {said}")]) from None
            self._files[path] = YamlSource.parse(text, name)
        return self._files[path]

    def _placed(self, wanted: Combination) -> YamlSource:
        """The document with what a combination sets, and where all of it comes from.

        As far as that can be set; it is for messages.
        """
        source = YamlSource(
            self._document.name, copy.deepcopy(self._document.data), dict(self._document.places)
        )
        for one in wanted.assignments:
            if one.target == ("guest",):
                _assign_placed(source, one)
        name = source.data.get("guest")
        if isinstance(name, str) and (file := self._files.get(Path(self._directory, name))):
            source.data["guest"] = copy.deepcopy(file.data)
            for place, words in file.places.items():
                source.places[("guest", *place)] = words
        for one in wanted.assignments:
            if one.target != ("guest",):
                _assign_placed(source, one)
        return source

    def _name(self, axes: Mapping[str, str]) -> str:
        if not axes:
            return "all"
        keys = tuple(axes)
        if keys not in self._names:
            short = [named_by_parameters(key).rpartition(".")[2] for key in keys]
            self._names[keys] = [
                one if short.count(one) == 1 else key for key, one in zip(keys, short, strict=True)
            ]
        pairs = zip(self._names[keys], axes.values(), strict=True)
        return ", ".join(f"{key}={label}" for key, label in pairs)


def _assign(data: dict[str, Any], one: Assignment) -> None:
    """Put a value of the matrix into the document.

    Raises:
        _MistakesError: there is no such part.
    """
    part: Any = data
    last = len(one.target) - 1
    for depth, step in enumerate(one.target):
        if isinstance(part, dict) and isinstance(step, str):
            if depth == last:
                part[step] = copy.deepcopy(one.value)
            else:
                if part.get(step) is None:
                    part[step] = {}
                part = part[step]
        elif isinstance(part, list) and isinstance(step, int) and step < len(part):
            if depth == last:
                part[step] = copy.deepcopy(one.value)
            part = part[step]
        else:
            there = dotted(one.target[: depth + 1])
            raise _MistakesError([(one.origin, f"there is no {there}")])


def _assign_placed(source: YamlSource, one: Assignment) -> None:
    """The same, with the places that the value came from; nothing where there is no such part."""
    try:
        _assign(source.data, one)
    except _MistakesError:
        return
    for known in [known for known in source.places if known[: len(one.target)] == one.target]:
        del source.places[known]
    origin = len(one.origin)
    for place, words in list(source.places.items()):
        if place[:origin] == one.origin:
            source.places[(*one.target, *place[origin:])] = words


def _of_part(part: CellPart) -> Iterator[Problem]:
    """What all but the guest does not allow together."""
    try:
        migration_plan(part)
    except PlanError as error:
        yield plan_problem(part, error)
    except UsageError as error:
        yield ("migration",), str(error)
    yield from _never(part)
    if part.network is not None and not part.network.model_fields_set:
        yield ("network",), "names no condition: bandwidth, latency-seconds, loss-percent"
    if part.network is not None and part.migration.channel == "fd":
        yield ("migration", "channel"), "network conditions need the channel tcp"


def _together(guest: GuestDescription, part: CellPart) -> Iterator[Problem]:
    """What the guest and the rest do not allow together."""
    ring = guest.tracking is not None and guest.tracking.is_ring
    if part.migration.throttle == "dirty-limit" and not ring:
        yield (
            ("migration", "throttle"),
            "dirty-limit needs guest.tracking ring:SIZE; exclude others",
        )
    goal = part.migration.goal
    if goal is not None and goal.then == "dirty-limit" and not ring:
        yield ("migration", "goal", "then"), "dirty-limit needs guest.tracking ring:SIZE"
    if part.removals is not None:
        yield from _removals(guest, part.removals.slots)


def _never(part: CellPart) -> Iterator[Problem]:
    """What no run would live to see."""
    limit, settle, abort = part.time_limit, part.settle_seconds, part.migration.abort.seconds
    if settle >= limit:
        yield (
            ("settle-seconds",),
            f"must be less than time-limit, {limit:g} s, or nothing is migrated",
        )
    elif abort is not None and settle + abort >= limit:
        yield (
            ("migration", "abort", "seconds"),
            f"must be less than {limit - settle:g} s, what time-limit leaves after settle-seconds",
        )
    goal = part.migration.goal
    if goal is not None and settle + goal.within >= limit:
        yield (
            ("migration", "goal", "within"),
            f"must be less than {limit - settle:g} s, what time-limit leaves after settle-seconds",
        )


def _removals(guest: GuestDescription, wanted: Sequence[str] | None) -> list[Problem]:
    names = [slot.name for slot in guest.slots]
    if guest.workload is None:
        return [(("removals",), "needs a guest with a workload: its slots are ours to map")]
    if not names:
        return [(("removals",), "the guest has no slots (guest.slots)")]
    if any(stream.pattern is Pattern.PCI_TOGGLE for stream in guest.workload.streams):
        return [(("removals",), "a vCPU of the guest removes slots itself (pci-toggle)")]
    return [
        (("removals", "slots", index), f'no slot is called "{name}"; known: {", ".join(names)}')
        for index, name in enumerate(wanted or ())
        if name not in names
    ]
