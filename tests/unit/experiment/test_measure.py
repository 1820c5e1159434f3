"""One run, as far as no guest is needed: what is kept of one that goes wrong; its two starts."""

from __future__ import annotations

import asyncio
import hashlib
import time
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from qemu_ring.errors import QemuRingError
from qemu_ring.experiment import ExperimentPlan
from qemu_ring.experiment.run import measure as module
from qemu_ring.experiment.run.guest_writes import GuestWrites
from qemu_ring.experiment.run.measure import Measurement
from qemu_ring.experiment.run.provenance import images
from qemu_ring.guestfile import GuestDescription, parse_guest, start_guests
from qemu_ring.machine import Machine
from qemu_ring.migration import Sample
from qemu_ring.qmp import MigrationStatus
from tests.waiting import DEADLINE, until

SAMPLE = Sample(
    seconds=0.5,
    status=MigrationStatus.ACTIVE,
    iteration=1,
    transferred=1,
    remaining=2,
    dirty_rate=3,
    bandwidth=4.0,
    expected_downtime=None,
    throttle=None,
    ring_full_seconds=None,
    throttle_seconds=None,
)


async def test_an_unexpected_error_leaves_what_was_measured(
    plan: ExperimentPlan, monkeypatch: pytest.MonkeyPatch
) -> None:
    measurement = Measurement(plan.cells[0].specification, Path("/no/such"))

    async def fails(_: Path) -> None:
        measurement._sample(SAMPLE)
        raise ZeroDivisionError("of\nour own")

    monkeypatch.setattr(module, "provenance", fails)
    await measurement.run()
    record = measurement.record
    assert record["status"] == "crashed"
    assert record["error"].startswith("ZeroDivisionError: of our own (test_measure.py:")
    assert [one["at_seconds"] for one in record["migration"]["samples"]] == [0.5]


def test_what_was_written() -> None:
    before = GuestWrites(30, (10, 20), {"heap": 10, "quiet": 20})
    after = GuestWrites(100, (70, 30), {"heap": 69, "quiet": 31})
    assert after.since(before) == {
        "pages_written": 70,
        "pages_written_by_vcpu": [60, 10],
        "pages_written_by_region": {"heap": 59, "quiet": 11},
    }
    assert GuestWrites(3).since(GuestWrites(1)) == {"pages_written": 2}


def test_what_a_guest_was_booted_from(tmp_path: Path) -> None:
    (tmp_path / "kernel").write_bytes(b"kernel")
    booted = SimpleNamespace(firmware=b"firmware", kernel=tmp_path / "kernel", initrd=None)
    machine = cast("Machine", SimpleNamespace(description=booted))
    assert images(machine) == {
        "firmware": {"path": None, "sha256": hashlib.sha256(b"firmware").hexdigest()},
        "kernel": {
            "path": str(tmp_path / "kernel"),
            "sha256": hashlib.sha256(b"kernel").hexdigest(),
        },
    }


@pytest.fixture
def guest() -> GuestDescription:
    return parse_guest("memory: 16 MiB\naccelerator: tcg\n")


def program(path: Path, source: str, destination: str) -> Path:
    """In place of a QEMU: it does one thing as the source, another as the destination."""
    path.write_text(f'#!/bin/sh\ncase "$*" in *-incoming*) {destination};; *) {source};; esac\n')
    path.chmod(0o755)
    return path


@pytest.mark.parametrize("case", ["source", "destination", "both"])
async def test_a_guest_that_does_not_start_ends_the_other(
    tmp_path: Path, guest: GuestDescription, case: str
) -> None:
    fails, hangs = "echo broken; exit 3", "exec sleep 600"
    source, destination = (
        fails if case in (side, "both") else hangs for side in ("source", "destination")
    )
    qemu, started = program(tmp_path / "qemu", source, destination), time.monotonic()
    with pytest.raises(QemuRingError, match="did not start: exit status 3: broken"):
        async with start_guests(guest, qemu):
            pass
    assert time.monotonic() - started < 2 * DEADLINE


async def test_both_starts_are_given_up(tmp_path: Path, guest: GuestDescription) -> None:
    begun = f"echo >> {tmp_path}/begun; exec sleep 600"
    qemu = program(tmp_path / "qemu", begun, begun)

    async def start() -> None:
        async with start_guests(guest, qemu):
            pass

    task = asyncio.create_task(start())
    file = tmp_path / "begun"
    await until(lambda: file.exists() and file.stat().st_size >= 2, "both are started at once")
    task.cancel()
    _, running = await asyncio.wait({task}, timeout=DEADLINE)
    assert not running
    assert task.cancelled()
