"""The progress of an experiment on standard error: a line for each run that ended, and a bar."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from types import TracebackType

from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
)
from rich.text import Text

from qemu_ring.cli.frame.output import notes
from qemu_ring.experiment import Cell, Results, Run, RunRecord, Watcher

__all__ = ["Live", "TimeLeft"]

_COLOURS = {"ok": "green", "stale": "bold red"}


class TimeLeft:
    """Reckons how long the rest takes: by the runs that ended, or what was expected of a cell.

    Args:
        results: what there is at the start.
    """

    def __init__(self, results: Results) -> None:
        self._cells = results.cells
        self._left = Counter(run.cell for run in results.left)
        self._took: dict[str, list[float]] = {}
        for record in results.records:
            self._took.setdefault(record.cell, []).append(record.wall_seconds)

    def ended(self, cell: str, seconds: float) -> None:
        """Note a run that ended."""
        self._left[cell] -= 1
        self._took.setdefault(cell, []).append(seconds)

    def expected(self, cell: str) -> float:
        """Seconds that a run of a cell takes."""
        took = self._took.get(cell)
        if took:
            return sum(took) / len(took)
        # The estimate knows nothing of this host; what other cells took tells how far it is off.
        known = [one for one in self._took if self._took[one]]
        estimated = sum(self._cells[one].estimate_seconds() for one in known)
        factor = sum(self.expected(one) for one in known) / estimated if known else 1.0
        return min(self._cells[cell].estimate_seconds() * factor, self._cells[cell].time_limit)

    def seconds(self) -> float:
        """Of all runs that have not ended."""
        return sum(self.expected(cell) * count for cell, count in self._left.items() if count)


class _LeftColumn(ProgressColumn):
    """Time left, as of the moment in which it is drawn."""

    def __init__(self, left: Callable[[], str]) -> None:
        super().__init__()
        self._left = left

    def render(self, task: Task) -> Text:
        """Ask, and show."""
        return Text("" if task.finished else self._left())


class Live(Watcher):
    """Shows how far an experiment is; a context manager.

    Args:
        results: what there is at the start.
        parallel: whether several runs go on at a time.
    """

    def __init__(self, results: Results, *, parallel: bool) -> None:
        self._total = len(results.runs)
        self._done = len(results.records)
        self._statuses = Counter(record.status.value for record in results.records)
        self._time_left = TimeLeft(results)
        self._begun: dict[tuple[str, int], tuple[Cell, float]] = {}
        # When runs under way began, and how long the rest takes: for the thread that draws.
        self._reckoned: tuple[list[float], float] = [], self._time_left.seconds()
        self._parallel = parallel
        self._bar = Progress(
            MofNCompleteColumn(),
            BarColumn(bar_width=20),
            _LeftColumn(self._left),
            TextColumn("{task.description}", markup=False),
            console=notes,
            transient=True,
            disable=not notes.is_terminal,
            get_time=time.monotonic,
        )
        self._task = self._bar.add_task("", total=self._total, completed=self._done)

    def __enter__(self) -> Live:
        self._bar.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._bar.__exit__(kind, error, traceback)

    def started(self, cell: Cell, run: Run) -> None:
        """Show it."""
        self._begun[run.key] = cell, time.monotonic()
        self._update()

    def ended(self, cell: Cell, run: Run, record: RunRecord) -> None:
        """Print its line."""
        self._begun.pop(run.key, None)  # a worker's word of its beginning may be under way yet
        self._done += 1
        status = record.status.value
        self._statuses[status] += 1
        self._time_left.ended(cell.id, record.wall_seconds)
        colour = _COLOURS.get(status, "red")
        said = f": {record.error}" if record.error else ""
        if not said and record.migration and record.migration.seconds is not None:
            said = f", migrated in {record.migration.seconds:.2f} s"
        notes.print(
            f"[{colour}]{status:>13}[/]  {self._done}/{self._total}  "
            f"{escape(cell.name)}, run {run.repeat}{escape(said)}",
            soft_wrap=True,
        )
        self._update()

    def _update(self) -> None:
        self._reckoned = [at for _, at in self._begun.values()], self._time_left.seconds()
        counts = ", ".join(f"{count} {status}" for status, count in self._statuses.items())
        now = "; ".join(cell.name for cell, _ in self._begun.values())
        self._bar.update(
            self._task,
            completed=self._done,
            description=" | ".join(filter(None, (counts, now))),
        )

    def _left(self) -> str:
        """Time left in words; of runs side by side, as if they were so to the end."""
        begun, rest = self._reckoned
        gone = sum(time.monotonic() - at for at in begun)
        side_by_side = max(1, len(begun)) if self._parallel else 1
        left = max(0.0, rest - gone) / side_by_side
        minutes, seconds = divmod(round(left), 60)
        return f"about {minutes}:{seconds:02} left"
