"""Progress on standard error."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from qemu_ring.cli.frame import output
from qemu_ring.cli.frame.output import Reminder, progress_bar
from qemu_ring.cli.migrate.command import _in_short
from qemu_ring.migration import Sample
from qemu_ring.qmp import MigrationStatus

MIB = 1 << 20


def sample(status: MigrationStatus, *, left: int, bandwidth: float, dirtied: int) -> Sample:
    return Sample(
        seconds=1.0,
        status=status,
        iteration=12,
        transferred=0,
        remaining=left,
        dirty_rate=dirtied,
        bandwidth=bandwidth,
        expected_downtime=None,
        throttle=None,
        ring_full_seconds=None,
        throttle_seconds=None,
    )


@pytest.mark.parametrize("status", [MigrationStatus.ACTIVE, MigrationStatus.POSTCOPY_ACTIVE])
def test_bar_keeps_its_clock_at_80_columns(
    monkeypatch: pytest.MonkeyPatch, status: MigrationStatus
) -> None:
    terminal = Console(file=io.StringIO(), force_terminal=True, width=80)
    monkeypatch.setattr(output, "notes", terminal)
    words = _in_short(sample(status, left=12_345 * MIB, bandwidth=1e9, dirtied=999 * MIB))
    with progress_bar() as bar:
        bar.add_task(words, total=100, completed=50)
        with terminal.capture() as captured:
            terminal.print(bar.get_renderable())
    line = captured.get()
    assert "0:00:00" in line
    assert line.count("\n") == 1
    assert "12,345 MiB left" in line


def test_dirty_rate_that_is_not_known_is_not_told() -> None:
    words = _in_short(sample(MigrationStatus.ACTIVE, left=MIB, bandwidth=2 * MIB, dirtied=0))
    assert words == "pass 12: 1 MiB left, 2 MiB/s sent"


def test_reminder(monkeypatch: pytest.MonkeyPatch) -> None:
    said = io.StringIO()
    monkeypatch.setattr(output, "notes", Console(file=said, width=20))
    now = 100.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    reminder = Reminder(10)
    for now in (100.0, 109.9, 110.0, 115.0, 120.0):
        reminder.tell(f"it is {now:g}, and this is a long line")
    lines = said.getvalue().splitlines()
    assert [line.split(",")[0] for line in lines] == [
        "qemu-ring: it is 110",
        "qemu-ring: it is 120",
    ]


def test_no_reminder_beside_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    said = io.StringIO()
    monkeypatch.setattr(output, "notes", Console(file=said, force_terminal=True))
    Reminder(0).tell("so far")
    assert said.getvalue() == ""
