"""What the report says and shows, before it is HTML."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from qemu_ring.experiment import Results
from qemu_ring.report import tables, units, verdict
from qemu_ring.report.comparison import change_plot, compare_answer, compare_experiments
from qemu_ring.report.plots.plot import Plot
from qemu_ring.report.plots.scaling import scaling_plots
from qemu_ring.report.plots.stalemap import stale_map
from qemu_ring.report.plots.strips import Row, strip_plot
from qemu_ring.report.plots.timeline import Subject, timeline_plot
from qemu_ring.report.summary import DOWNTIME, GUEST_DOWNTIME, TIME, CellSummary, summarise
from qemu_ring.report.tables import Table

__all__ = ["Experiment", "Page", "build_page"]

MEASURES = (TIME, DOWNTIME, GUEST_DOWNTIME)


@dataclass(frozen=True)
class Experiment:
    """One experiment's part of the page.

    Args:
        letter: A or B where there are two, else empty.
        results: what was read.
        summary: what was asked, in a line.
        answers: the verdicts.
        cells: what was measured.
        stale: the first stale pages.
        more_stale: how many more there are.
        runs: every run.
        facts: what matters most of host, KVM and QEMU.
        more_facts: the rest of it.
        commands: by cell, how QEMU was started.
    """

    letter: str
    results: Results
    summary: str
    answers: tuple[verdict.Answer, ...]
    cells: Table
    stale: Table
    more_stale: int
    runs: Table
    facts: Table
    more_facts: Table
    commands: list[tuple[str, list[str]]]

    @property
    def name(self) -> str:
        """Its name, with the letter by which the plots call it."""
        name = self.results.experiment.name
        return f"{self.letter}: {name}" if self.letter else name


@dataclass(frozen=True)
class Page:
    """The whole report.

    Args:
        title: what it is of.
        experiments: one, or two.
        change: of two: how they compare.
        pairs: the same for each cell.
        apart: what else is not the same.
        plots: all of them.
    """

    title: str
    experiments: tuple[Experiment, ...]
    change: verdict.Answer | None
    pairs: Table | None
    apart: Table | None
    plots: tuple[Plot, ...]


def build_page(results: Sequence[Results]) -> Page:
    """Put together what there is to say of one experiment, or of two to be compared."""
    letters = ["A", "B"] if len(results) == 2 else [""]
    summaries = [summarise(one) for one in results]
    experiments = tuple(
        _experiment(letter, one, cells)
        for letter, one, cells in zip(letters, results, summaries, strict=True)
    )
    title = " against ".join(dict.fromkeys(one.name for one in experiments))
    subjects = [
        Subject(one, letter, run)
        for letter, one in zip(letters, results, strict=True)
        for run in one.records
    ]
    timeline = timeline_plot(subjects)
    if len(results) == 1:
        cells = summaries[0]
        rows = [Row(cell.name, (cell.runs,)) for cell in cells]
        strips = [strip_plot(rows, measure) for measure in MEASURES]
        plots = [*strips, *scaling_plots(cells, MEASURES), stale_map(cells), timeline]
        return Page(title, experiments, None, None, None, tuple(plot for plot in plots if plot))
    first, second = summaries
    comparison = compare_experiments(results[0], results[1], (first, second))
    pairs = comparison.pairs if comparison else ()
    paired = {id(cell) for pair in pairs for cell in (pair.first, pair.second)}
    rows = [Row(pair.name, (pair.first.runs, pair.second.runs)) for pair in pairs]
    rows += [Row(cell.name, (cell.runs, ())) for cell in first if id(cell) not in paired]
    rows += [Row(cell.name, ((), cell.runs)) for cell in second if id(cell) not in paired]
    labelled = [
        CellSummary(cell.cell, f"{letter}: {cell.name}", cell.runs)
        for letter, cells in zip(letters, summaries, strict=True)
        for cell in cells
    ]
    plots = [
        change_plot(comparison),
        *(strip_plot(rows, measure, letters) for measure in MEASURES),
        stale_map(labelled),
        timeline,
    ]
    return Page(
        title=title,
        experiments=experiments,
        change=compare_answer(comparison),
        pairs=tables.pair_table(comparison) if comparison else None,
        apart=tables.apart_table(comparison) if comparison else None,
        plots=tuple(plot for plot in plots if plot),
    )


def _experiment(letter: str, results: Results, cells: Sequence[CellSummary]) -> Experiment:
    stale, more = tables.stale_table(results)
    facts, more_facts = tables.facts_tables(results)
    asked = results.experiment
    summary = (
        f"{units.many(len(asked.cells), 'cell')}, {units.many(asked.repeats, 'repeat')} each"
        + (f" after {units.many(asked.warm_up, 'run')} to warm up" if asked.warm_up else "")
        + f"; begun {units.moment(asked.created)}"
    )
    answers = [verdict.stale_pages(results, cells)]
    unfinished = verdict.failures(cells)
    if unfinished:
        answers.append(unfinished)
    if not letter and any(cell.measured for cell in cells):
        answers += [verdict.fastest(cells, TIME), verdict.fastest(cells, DOWNTIME)]
    return Experiment(
        letter=letter,
        results=results,
        summary=summary,
        answers=tuple(answers),
        cells=tables.cell_table(cells),
        stale=stale,
        more_stale=more,
        runs=tables.run_table(results),
        facts=facts,
        more_facts=more_facts,
        commands=tables.command_lines(results),
    )
