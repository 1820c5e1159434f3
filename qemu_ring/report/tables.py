"""The report's tables, as words: cells, runs, the host, and how it was run."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from qemu_ring.experiment import Results
from qemu_ring.report import units
from qemu_ring.report.comparison import Change, ComparedResults, interval_words, signed
from qemu_ring.report.summary import (
    DOWNTIME,
    ENDINGS,
    GUEST_DOWNTIME,
    SENT,
    TIME,
    CellSummary,
    Measure,
)

__all__ = [
    "Table",
    "apart_table",
    "cell_table",
    "command_lines",
    "facts_tables",
    "pair_table",
    "run_table",
    "stale_table",
]

_MOST_STALE = 50
_GROUPS = {"host": "Host", "kvm": "KVM", "qemu": "QEMU", "versions": "Version"}
_MAIN_FACTS = (
    "host.cpu_model",
    "host.cpus",
    "host.memory_available_bytes",
    "host.kernel",
    "kvm.dirty_ring_max_entries",
    "kvm.manual_protect",
    "qemu.path",
    "qemu.version",
    "qemu.patched",
    "qemu.sha256",
    "versions.qemu-ring",
)
_MOST_FACTS = 6  # different values of one fact that are shown


@dataclass(frozen=True)
class Column:
    """A column: its head, and whether it holds numbers."""

    head: str
    numbers: bool = True


@dataclass(frozen=True)
class Table:
    """A table; a row is marked if it had stale pages, and a value's second line is small."""

    columns: tuple[Column, ...]
    rows: tuple[tuple[bool, tuple[str, ...]], ...]


def cell_table(cells: Sequence[CellSummary]) -> Table:
    """Tell of each cell what was measured."""
    with_guest = any(cell.values(GUEST_DOWNTIME) for cell in cells)
    with_removals = any(cell.slots_removed for cell in cells)
    measures = [TIME, DOWNTIME, *([GUEST_DOWNTIME] if with_guest else []), SENT]
    columns = [Column("Cell", numbers=False), Column("Runs"), Column("Stale pages")]
    columns += [Column(measure.title) for measure in measures]
    columns += [Column("Pages written"), *([Column("Slots removed")] if with_removals else [])]
    rows = []
    for cell in cells:
        values = [cell.name, _runs(cell), units.count(cell.stale_pages)]
        values += [_estimate(cell, measure) for measure in measures]
        values.append(units.count(cell.pages_written))
        if with_removals:
            values.append(units.count(cell.slots_removed))
        rows.append((cell.stale_pages > 0, tuple(values)))
    return Table(tuple(columns), tuple(rows))


def pair_table(comparison: ComparedResults) -> Table:
    """Tell of each cell what changed between two experiments."""
    columns = [Column("Cell", numbers=False), Column("Runs, A"), Column("Runs, B")]
    columns.append(Column("Stale, A and B"))
    measures = list(dict.fromkeys(change.measure for change in comparison.changes))
    by_cell = {(id(change.pair), change.measure): change for change in comparison.changes}
    for measure in measures:
        columns += [Column(f"{measure.title}, A"), Column("B"), Column("Change")]
    rows = []
    for pair in comparison.pairs:
        values = [pair.name, _runs(pair.first), _runs(pair.second)]
        values += [f"{pair.first.stale_pages:,}, {pair.second.stale_pages:,}"]
        for measure in measures:
            estimates = pair.first.estimate(measure), pair.second.estimate(measure)
            values += [measure.say(one.value if one else None) for one in estimates]
            values.append(_change(by_cell.get((id(pair), measure))))
        rows.append((pair.second.stale_pages > 0, tuple(values)))
    return Table(tuple(columns), tuple(rows))


def apart_table(comparison: ComparedResults) -> Table:
    """Tell what else is not the same in two experiments."""
    columns = (Column("What", numbers=False), Column("A", numbers=False))
    found = {**comparison.found.unlike, **comparison.found.provenance}
    rows = [
        (False, (key, *("; ".join(_parameters(key, side)) for side in sides)))
        for key, sides in found.items()
    ]
    for place, names in enumerate((comparison.found.only_a, comparison.found.only_b)):
        rows += [(False, (f"cell only in {'AB'[place]}", *_at(place, name))) for name in names]
    return Table((*columns, Column("B", numbers=False)), tuple(rows))


def _parameters(key: str, side: Any) -> list[str]:
    return [units.parameter(key, one) for one in (side if isinstance(side, list) else [side])]


def _at(place: int, name: str) -> tuple[str, str]:
    return (name, units.NONE) if place == 0 else (units.NONE, name)


def run_table(results: Results) -> Table:
    """Tell of every run, in the order in which they ended."""
    heads = ("Repeat", "Status", "Stale pages", "Migration time", "Downtime", "Sent", "Iterations")
    columns = (
        Column("Cell", numbers=False),
        *(Column(head, numbers=head != "Status") for head in heads),
        Column("Slots removed"),
        Column("Seed"),
        Column("What went wrong", numbers=False),
    )
    rows = []
    for run in results.records:
        migration = run.migration
        rows.append(
            (
                bool(run.stale_pages),
                (
                    results.name_of(run.cell),
                    f"warm-up {run.repeat}" if run.warm_up else f"{run.repeat}",
                    ENDINGS[run.status],
                    units.count(run.stale_pages),
                    units.seconds(migration.seconds if migration else None),
                    units.seconds(migration.downtime_seconds if migration else None),
                    units.size(migration.bytes if migration else None),
                    units.count(len(migration.iterations) if migration else None),
                    units.count(run.slots_removed),
                    f"{run.seed}",
                    run.error or "",
                ),
            )
        )
    return Table(columns, tuple(rows))


def stale_table(results: Results) -> tuple[Table, int]:
    """List the first stale pages, and tell how many more there are."""
    columns = (
        Column("Cell", numbers=False),
        Column("Repeat"),
        Column("Block", numbers=False),
        Column("Page"),
        Column("Offset"),
    )
    found = [
        (True, (results.name_of(run.cell), f"{run.repeat}", page.block, f"{page.page:,}",
                f"{page.page * 4096:#x}"))
        for run in results.records
        for page in run.stale
    ]  # fmt: skip
    total = sum(run.stale_pages or 0 for run in results.records)
    return Table(columns, tuple(found[:_MOST_STALE])), max(total - _MOST_STALE, 0)


def facts_tables(results: Results) -> tuple[Table, Table]:
    """Tell what host, KVM and QEMU were: what matters most, and the rest.

    Where runs differ, it is each value with its runs, or a number's range.
    """
    found: dict[str, Counter[Any]] = defaultdict(Counter)
    for run in results.records:
        known = {k: v for k, v in run.provenance.items() if k != "command_lines"}
        for key, value in _flat(known):
            found[key][value] += 1
    main = [key for key in _MAIN_FACTS if key in found]
    rest = [key for key in found if key not in main]
    columns = (Column("Fact", numbers=False), Column("Value", numbers=False))
    first, second = (
        Table(columns, tuple((False, (_fact_name(key), _fact(key, found[key]))) for key in keys))
        for keys in (main, rest)
    )
    return first, second


def _fact_name(key: str) -> str:
    group, _, name = key.partition(".")
    words = name.replace("_", " ").replace(".", ", ").removesuffix(" bytes")
    return f"{_GROUPS.get(group, group)}: {words}" if words else group


def _fact(key: str, values: Counter[Any]) -> str:
    if len(values) == 1:
        return units.parameter(key, next(iter(values)))
    if all(isinstance(value, int | float) and not isinstance(value, bool) for value in values):
        return f"{units.parameter(key, min(values))} to {units.parameter(key, max(values))}"
    if len(values) <= _MOST_FACTS:
        many = values.most_common()
        return "; ".join(f"{units.parameter(key, v)} ({units.many(n, 'run')})" for v, n in many)
    return f"{len(values)} different values"


def command_lines(results: Results) -> list[tuple[str, list[str]]]:
    """Give the command lines of each cell's first run that has any."""
    found = []
    for cell, runs in results.by_cell.items():
        for run in runs:
            lines = run.provenance.get("command_lines")
            if isinstance(lines, list) and lines:
                shown = [" ".join(map(str, one)) if isinstance(one, list) else str(one)
                         for one in lines]  # fmt: skip
                found.append((results.name_of(cell), shown))
                break
    return found


def _runs(cell: CellSummary) -> str:
    done = len(cell.measured)
    failed = ", ".join(f"{n} {ENDINGS[status]}" for status, n in cell.failures.most_common())
    return f"{done}\n{failed}".rstrip()


def _estimate(cell: CellSummary, measure: Measure) -> str:
    estimate = cell.estimate(measure)
    if estimate is None:
        return units.NONE
    return f"{measure.say(estimate.value)}\n{measure.interval(estimate)}".rstrip()


def _change(change: Change | None) -> str:
    if change is None:
        return units.NONE
    one = change.difference
    verdict = str(one.verdict).replace("-", " ")
    first = units.NONE if one.change is None else signed(one.change)
    return f"{first}\n{verdict}\n{interval_words(one)}".rstrip()


def _flat(value: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, inner in value.items():
        name = f"{prefix}{key}"
        if isinstance(inner, Mapping):
            yield from _flat(inner, f"{name}.")
        elif isinstance(inner, list):
            yield name, ", ".join(map(str, inner)) or units.NONE
        else:
            yield name, inner
