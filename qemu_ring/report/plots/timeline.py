"""One migration over time: removals, rates, what remains, how full the dirty ring is."""

from __future__ import annotations

import itertools
import statistics
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

from qemu_ring.experiment import Results
from qemu_ring.experiment.results.record import (
    MigrationRecord,
    RemovalRecord,
    RunDetails,
    RunRecord,
    SampleRecord,
)
from qemu_ring.report import units
from qemu_ring.report.plots.plot import Choice, Data, Plot, slug
from qemu_ring.report.plots.timeline_views import BANDWIDTH, DIRTY, Scales, timeline_spec
from qemu_ring.report.summary import ENDINGS

__all__ = ["Subject", "timeline_plot"]

_MOST_SAMPLES = 300
_MOST_MARKS = 400  # of removals; those that come closer together are added up
_MOST_RUNS = 60
_MOST_FILES = 12  # drawn as files; the page has all
_NO_RING = "no dirty ring, or none that QEMU told of"


@dataclass(frozen=True)
class Subject:
    """A run that has a timeline.

    Args:
        results: the experiment that it is of.
        group: that experiment's name where there are two.
        run: the run.
    """

    results: Results
    group: str
    run: RunRecord

    @cached_property
    def details(self) -> RunDetails:
        """Its samples and removals."""
        return self.run.details()

    @property
    def migration(self) -> MigrationRecord:
        """Of a run that has one."""
        assert self.run.migration is not None
        return self.run.migration

    @property
    def cell(self) -> str:
        """Its cell, with the experiment's name where there are two."""
        name = self.results.name_of(self.run.cell)
        return f"{self.group}: {name}" if self.group else name

    @property
    def ring_entries(self) -> int | None:
        """How many entries its dirty rings have; None if that is not told."""
        value = self.results.cells[self.run.cell].parameters.get("ring_entries")
        return value if isinstance(value, int) and value > 0 else None

    @property
    def label(self) -> str:
        """Which run it is, in words."""
        stale = self.run.stale_pages
        ended = units.many(stale, "stale page") if stale else ENDINGS[self.run.status]
        kind = "warm-up" if self.run.warm_up else "repeat"
        return f"{self.cell} · {kind} {self.run.repeat} · {ended}"


def timeline_plot(subjects: Sequence[Subject]) -> Plot | None:
    """Plot any of the runs that have iterations or samples; None if none has.

    The first of them is what the page shows first: one with stale pages, if there is one.
    """
    able = [one for one in subjects if _has_timeline(one)]
    if not able:
        return None
    order = _choose(able)
    scales = _scales(order)
    names: list[str] = []
    choices = []
    for one in order:
        names.append(slug(f"{one.cell} {one.run.repeat}", names))
        choices.append(Choice(names[-1], one.label, _data(one, scales)))
    cells: dict[str, str] = {}
    for name, one in zip(names, order, strict=True):
        cells.setdefault(one.cell, name)
    left_out = len(able) - len(order)
    return Plot(
        name="timeline",
        title="One migration over time",
        caption=(
            "Bands are the iterations; the red one is the downtime, until the destination runs. "
            "A thick line holds for an iteration, the thin one is QEMU's measurement; dirtied is "
            "what the next iteration has to send, by the time of this one. Drag "
            "sideways to move; shift and wheel to zoom; double click to see all."
            + (
                f" {left_out:,} more runs have a timeline; those of the widest interest are here."
                if left_out
                else ""
            )
        ),
        spec=timeline_spec(
            scales,
            with_removals=any(one.details.removals for one in order),
            with_samples=any(one.details.samples for one in order),
            shapes=sorted({removal.shape for one in order for removal in one.details.removals}),
        ),
        choices=tuple(choices),
        margin=80,
        files=frozenset(list(cells.values())[:_MOST_FILES]),
    )


def _has_timeline(one: Subject) -> bool:
    migration = one.run.migration
    return migration is not None and bool(migration.iterations or one.details.samples)


def _choose(able: Sequence[Subject]) -> list[Subject]:
    """Order by interest: of each cell the median by time, before it one with stale pages."""
    by_cell: dict[str, list[Subject]] = defaultdict(list)
    for one in able:
        by_cell[one.cell].append(one)
    first = []
    for members in by_cell.values():
        members.sort(key=lambda one: one.migration.seconds or 0.0)
        measured = [one for one in members if one.run.is_measured] or members
        stale = [one for one in measured if one.run.stale_pages]
        first.append(stale[0] if stale else measured[len(measured) // 2])
    first.sort(key=lambda one: not one.run.stale_pages)
    chosen = {id(one) for one in first}
    rest = [one for one in able if id(one) not in chosen]
    return [*first, *rest][:_MOST_RUNS]


def _scales(subjects: Sequence[Subject]) -> Scales:
    """Choose what fits all of the runs."""
    rates, sizes, rings = [], [], set()
    for subject in subjects:
        one, samples = subject.migration, subject.details.samples
        told = [step.bandwidth for step in one.iterations] + _dirty_rates(one)
        rates.append(max((value or 0.0 for value in told), default=0.0))
        left = [step.remaining for step in one.iterations]
        left += [sample.remaining for sample in samples]
        sizes.append(max((value or 0 for value in left), default=0))
        if any(sample.ring_fill is not None for sample in samples):
            rings.add(subject.ring_entries)
    ring: Literal["", "share", "entries"] = (
        "" if not rings else "entries" if None in rings else "share"
    )
    # By the middle run, so that one with a short burst does not make the others flat.
    rate, size = statistics.median_high(rates), statistics.median_high(sizes)
    return Scales(units.rate_unit(rate), units.size_unit(size), ring)


def _data(subject: Subject, scales: Scales) -> Data:
    migration = subject.migration
    end = _end(subject)
    entries = (subject.ring_entries or 1) if scales.ring == "share" else 1
    bands, rates = [], []
    dirtied = _dirty_rates(migration)
    for number, step in enumerate(migration.iterations):
        until = step.at_seconds + step.seconds
        bands.append(
            {
                "from": _round(step.at_seconds),
                "to": _round(until),
                "middle": _round((step.at_seconds + until) / 2),
                "number": str(step.number) if step.seconds > end / 40 else "",
                "odd": number % 2,
                "iteration": step.number,
                "took": units.seconds(step.seconds),
                "sent": units.size(step.bytes),
                "dirty": units.rate(dirtied[number]),
                "rate": units.rate(step.bandwidth),
                "left": units.size(step.remaining),
                "expected": units.seconds(step.expected_downtime_seconds),
                "ring": units.seconds(step.ring_full_seconds),
            }
        )
        for what, value in ((BANDWIDTH, step.bandwidth), (DIRTY, dirtied[number])):
            if value is not None:
                rates.append(
                    {
                        "from": _round(step.at_seconds),
                        "to": _round(until),
                        "value": scales.rate.of(value),
                        "what": what,
                        "iteration": step.number,
                        "shown": units.rate(value),
                    }
                )
    samples = [
        {
            "at": _round(sample.at_seconds),
            "remaining": _scaled(sample.remaining, scales.size.of),
            "bandwidth": _scaled(sample.bandwidth, scales.rate.of),
            "fill": _scaled(fill, lambda fill: float(f"{fill / entries:.4g}")),
        }
        for sample, fill in _thinned(subject.details.samples)
    ]
    down = [
        {"from": _round(begun), "to": _round(over), "took": units.seconds(over - begun)}
        for begun, over in _downtime(migration)
    ]
    whole = [{"from": 0, "to": _round(end)}]
    return {
        "whole": whole,
        "bands": bands,
        "rates": rates,
        "samples": samples,
        "down": down,
        "absent": [] if any(s["fill"] is not None for s in samples) else [{"text": _NO_RING}],
        "removals": _removals(subject.details.removals, end),
    }


def _thinned(samples: Sequence[SampleRecord]) -> Iterator[tuple[SampleRecord, int | None]]:
    """The first sample of each few, with the fullest ring of them: a peak is what matters."""
    stride = -(-len(samples) // _MOST_SAMPLES) or 1
    for first in range(0, len(samples), stride):
        fills = [one.ring_fill for one in samples[first : first + stride]]
        yield samples[first], max((fill for fill in fills if fill is not None), default=None)


def _dirty_rates(migration: MigrationRecord) -> list[float | None]:
    """Tell how fast the guest dirtied memory in each iteration: what the next one has to send.

    QEMU's own figure is 0 until a sync comes 1 s after the one before it, so a short migration
    never has one.
    """
    found: list[float | None] = []
    for step, after in itertools.pairwise(migration.iterations):
        known = after.remaining is not None and step.seconds > 0
        found.append((after.remaining or 0) / step.seconds if known else step.dirty_rate or None)
    return [*found, None] if migration.iterations else []


def _downtime(migration: MigrationRecord) -> list[tuple[float, float]]:
    """Place the downtime: at most one.

    The guest is stopped as the last iteration begins, or inside it, where QEMU's own figure,
    which ends with that iteration, says so. It runs again at the destination, later than that.
    """
    if migration.downtime_seconds is None or not migration.iterations:
        return []
    last = migration.iterations[-1]
    at_source = migration.qemu_downtime_seconds
    if at_source is None:
        at_source = migration.downtime_seconds
    begun = max(last.at_seconds, last.at_seconds + last.seconds - at_source)
    return [(begun, begun + migration.downtime_seconds)]


def _end(one: Subject) -> float:
    """When the last thing happened, in seconds from the start."""
    migration, details = one.migration, one.details
    times = [migration.seconds or 0.0]
    times += [step.at_seconds + step.seconds for step in migration.iterations]
    times += [over for _, over in _downtime(migration)]
    times += [sample.at_seconds for sample in details.samples]
    times += [removal.at_seconds for removal in details.removals]
    return max(times)


def _removals(removals: Sequence[RemovalRecord], end: float) -> list[dict[str, Any]]:
    width = end / _MOST_MARKS if len(removals) > _MOST_MARKS else 0.0
    marks: dict[tuple[str, float], int] = defaultdict(int)
    for one in removals:
        at = (int(one.at_seconds / width) + 0.5) * width if width else one.at_seconds
        marks[one.shape, _round(at)] += one.count
    return [
        {"at": at, "shape": shape, "count": count}
        for (shape, at), count in sorted(marks.items(), key=lambda item: item[0][1])
    ]


def _round(value: float) -> float:
    return float(f"{value:.6g}")


def _scaled(value: float | None, convert: Callable[[float], float]) -> float | None:
    return None if value is None else convert(value)
