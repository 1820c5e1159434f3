"""An experiment from its file: parsed, checked, each mistake named with file, line and field."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from qemu_ring.errors import UsageError
from qemu_ring.experiment.errors import ExperimentFileError
from qemu_ring.experiment.matrix import Assignment, Combination, MatrixError, combinations
from qemu_ring.experiment.migrations import migration_plan
from qemu_ring.experiment.parameters import flat_parameters, named_by_parameters
from qemu_ring.experiment.plan import Cell, ExperimentPlan, digest
from qemu_ring.experiment.schema import CellPart, PlanPart
from qemu_ring.experiment.tables import RESERVED
from qemu_ring.guest import Pattern
from qemu_ring.guestfile import GuestDescription, GuestFileError
from qemu_ring.guestfile.mistakes import mistakes
from qemu_ring.guestfile.plan import problems as guest_problems
from qemu_ring.guestfile.source import Path as DocumentPath
from qemu_ring.guestfile.source import Source, dotted

__all__ = ["load_experiment", "parse_experiment"]

Problem = tuple[DocumentPath, str]
_MOST_RUNS = 1_000_000
T = TypeVar("T")


def load_experiment(path: str | Path) -> ExperimentPlan:
    """Read an experiment from a YAML file.

    Raises:
        ExperimentFileError: it cannot be right; its `problems` are one line each.
        UsageError: the file cannot be read.
    """
    text = _read(Path(path), str(path))
    return parse_experiment(text, name=str(path), directory=Path(path).absolute().parent)


def parse_experiment(
    text: str, *, name: str = "experiment.yaml", directory: Path | None = None
) -> ExperimentPlan:
    """The same from a text.

    Args:
        text: YAML.
        name: of its file, for messages, and for an experiment that has no name.
        directory: what relative paths are seen from; None for the current one.

    Raises:
        ExperimentFileError: as in `load_experiment`.
    """
    directory = (directory or Path()).absolute()
    try:
        document = Source.parse(text, name)
    except GuestFileError as error:
        words = "an experiment is a mapping, with a guest and a matrix"
        raise ExperimentFileError(
            [
                one.replace("a guest is a mapping, such as `memory: 64 MiB`", words)
                for one in error.problems
            ]
        ) from None
    for key in [key for key in document.data if key.startswith("x-")]:
        del document.data[key]  # a place for anchors
    part = _plan_part(document)
    taken = [
        key for key in part.matrix if key in RESERVED and key.split(".")[0] not in _cell_keys()
    ]
    if taken:
        said = "is a column of the results; choose another word"
        raise _wrong(document, [(("matrix", key), said) for key in taken])
    try:
        wanted = combinations(part.matrix, part.include, part.exclude, _cell_keys())
    except MatrixError as error:
        raise _wrong(document, [(error.path, error.message)]) from None
    resolver = _Resolver(document, directory)
    cells = [resolver.cell(one) for one in wanted]
    if resolver.problems:
        raise ExperimentFileError(list(dict.fromkeys(resolver.problems)))
    _require_different(document, wanted, cells)
    runs = len(cells) * (part.repeats + part.warm_up)
    if runs > _MOST_RUNS:
        said = f"makes {runs:,} runs; {_MOST_RUNS:,} are the most that can be"
        raise _wrong(document, [(("repeats",), said)])
    return ExperimentPlan(
        name=part.name or Path(name).stem,
        description=part.description,
        source=text,
        cells=tuple(cell for cell in cells if cell is not None),
        repeats=part.repeats,
        warm_up=part.warm_up,
        seed=part.seed,
        order=part.order,
        stop=part.stop.model_dump(by_alias=True, exclude_none=True),
    )


def _read(path: Path, name: str) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise UsageError(f"{name}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ExperimentFileError([f"{name}:1: no YAML: it is not UTF-8"]) from error


def _cell_keys() -> list[str]:
    return ["guest", *(field.alias or name for name, field in CellPart.model_fields.items())]


def _wrong(document: Source, problems: Sequence[Problem]) -> ExperimentFileError:
    return ExperimentFileError(document.error(problems).problems)


def _plan_part(document: Source) -> PlanPart:
    """What is not part of a cell; keys that nothing knows are found here."""
    cell_keys = _cell_keys()
    data = {key: value for key, value in document.data.items() if key not in cell_keys}
    try:
        return PlanPart.model_validate(data)
    except ValidationError as error:
        found = [
            (path, f"{text}, {', '.join(cell_keys)}" if text.startswith("unknown key") else text)
            for path, text in mistakes(error, data, PlanPart)
        ]
        raise _wrong(document, found) from None


class _Resolver:
    """Makes cells, and gathers what is wrong with any of them.

    Args:
        document: the experiment.
        directory: what its relative paths are seen from.
    """

    def __init__(self, document: Source, directory: Path) -> None:
        self._document = document
        self._directory = directory
        self._files: dict[Path, Source] = {}
        self.problems: list[str] = []

    def cell(self, wanted: Combination) -> Cell | None:
        """Resolve one combination; None if it has a problem."""
        source = Source(
            self._document.name, copy.deepcopy(self._document.data), dict(self._document.places)
        )
        try:
            directory = self._assign(source, wanted)
        except GuestFileError as error:
            self.problems += error.problems
            return None
        guest = self._noting(lambda: self._guest(source, directory, wanted))
        part = self._noting(lambda: self._part(source))
        if guest is None or part is None:
            return None
        wrong = list(_together(guest, part))
        if wrong:
            self.problems += source.error(_in(wanted, wrong)).problems
            return None
        specification = {
            "guest": source.data["guest"],
            **part.model_dump(mode="json", by_alias=True),
        }
        axes = dict(wanted.axes)
        return Cell(
            id=digest(specification)[:12],
            name=_name(axes),
            axes=axes,
            parameters=flat_parameters(guest, part, axes),
            specification={**specification, "directory": str(directory)},
        )

    def _noting(self, make: Callable[[], T]) -> T | None:
        """What `make` gives; None if it has problems, which are noted."""
        try:
            return make()
        except GuestFileError as error:
            self.problems += error.problems
            return None

    def _assign(self, source: Source, wanted: Combination) -> Path:
        """Set what the combination sets; tell where the guest's relative paths are seen from."""
        whole = [one for one in wanted.assignments if one.target == ("guest",)]
        for one in whole:
            _set(source, one)
        directory = self._directory
        if isinstance(source.data.get("guest"), str):
            directory = self._include_guest(source, source.data["guest"])
        for one in wanted.assignments:
            if one not in whole:
                _set(source, one)
        return directory

    def _include_guest(self, source: Source, name: str) -> Path:
        """Put the guest in place of the path of its file."""
        path = Path(self._directory, name)
        if path not in self._files:
            try:
                text = path.read_text(encoding="utf-8")
            except (OSError, UnicodeDecodeError) as error:
                said = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
                raise source.error([(("guest",), f"{name}: {said}")]) from None
            self._files[path] = Source.parse(text, name)
        file = self._files[path]
        source.data["guest"] = copy.deepcopy(file.data)
        for place, words in file.places.items():
            source.places[("guest", *place)] = words
        return path.parent

    def _guest(self, source: Source, directory: Path, wanted: Combination) -> GuestDescription:
        data = source.data.get("guest")
        if not isinstance(data, dict):
            said = "is missing" if data is None else "must be a mapping, or the path of a file"
            raise source.error([(("guest",), said)])
        try:
            guest = GuestDescription.model_validate(data, context=directory)
        except ValidationError as error:
            raise source.error(mistakes(error, data, GuestDescription, ("guest",))) from None
        wrong = [(("guest", *path), said) for path, said in guest_problems(guest)]
        if wrong:
            raise source.error(_in(wanted, wrong))
        return guest

    def _part(self, source: Source) -> CellPart:
        known = {field.alias for field in PlanPart.model_fields.values()} | {"guest"}
        data = {key: value for key, value in source.data.items() if key not in known}
        try:
            return CellPart.model_validate(data, context=self._directory)
        except ValidationError as error:
            raise source.error(mistakes(error, data, CellPart)) from None


def _in(wanted: Combination, problems: Sequence[Problem]) -> list[Problem]:
    """What no single field shows, with the combination in which it is so."""
    which = f" (in {_name(wanted.axes)})" if wanted.axes else ""
    return [(path, said + which) for path, said in problems]


def _set(source: Source, one: Assignment) -> None:
    """Put a value of the matrix into the document, with the places that it came from."""
    part: Any = source.data
    for depth, step in enumerate(one.target):
        last = depth == len(one.target) - 1
        if isinstance(part, dict) and isinstance(step, str):
            if last:
                part[step] = copy.deepcopy(one.value)
            else:
                if part.get(step) is None:
                    part[step] = {}
                part = part[step]
        elif isinstance(part, list) and isinstance(step, int) and step < len(part):
            if last:
                part[step] = copy.deepcopy(one.value)
            part = part[step]
        else:
            raise source.error([(one.origin, f"there is no {dotted(one.target[: depth + 1])}")])
    for known in [known for known in source.places if known[: len(one.target)] == one.target]:
        del source.places[known]
    origin = len(one.origin)
    for place, words in list(source.places.items()):
        if place[:origin] == one.origin:
            source.places[(*one.target, *place[origin:])] = words


def _together(guest: GuestDescription, part: CellPart) -> list[Problem]:
    """What the guest and the rest do not allow together."""
    found: list[Problem] = []
    try:
        migration_plan(part)
    except UsageError as error:
        found.append((("migration",), str(error)))
    found += _never(part)
    ring = guest.tracking is not None and guest.tracking.is_ring
    if part.migration.throttle == "dirty-limit" and not ring:
        found.append(
            (
                ("migration", "throttle"),
                "dirty-limit needs guest.tracking ring:SIZE; exclude others",
            )
        )
    if part.network is not None and not part.network.model_fields_set:
        found.append((("network",), "names no condition: bandwidth, latency-seconds, loss-percent"))
    if part.network is not None and part.migration.channel == "fd":
        found.append((("migration", "channel"), "network conditions need the channel tcp"))
    if part.removals is not None:
        found += _removals(guest, part.removals.slots)
    return found


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


def _name(axes: Mapping[str, str]) -> str:
    if not axes:
        return "all"
    short = {key: named_by_parameters(key).rpartition(".")[2] for key in axes}
    unique = {
        key: one if list(short.values()).count(one) == 1 else key for key, one in short.items()
    }
    return ", ".join(f"{unique[key]}={label}" for key, label in axes.items())


def _require_different(
    document: Source, wanted: Sequence[Combination], cells: Sequence[Cell | None]
) -> None:
    seen: dict[str, str] = {}
    found = []
    for combination, cell in zip(wanted, cells, strict=True):
        if cell is not None and cell.id in seen:
            found.append((combination.origin, f"{cell.name} is the same as {seen[cell.id]}"))
        elif cell is not None:
            seen[cell.id] = cell.name
    if found:
        raise _wrong(document, found)
