"""A guest that changes its way of tracking while it runs."""

from __future__ import annotations

import asyncio
import hashlib
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from threading import Event, Thread

import pytest

from qemu_ring.errors import DeadlineError, QemuRingError, UsageError
from qemu_ring.guest import WorkloadControl
from qemu_ring.machine import Accelerator, Machine
from qemu_ring.migration.toggling.toggle import toggle
from qemu_ring.qmp import commands
from tests.kvm.migration.toggling import after_start, guest
from tests.waiting import DEADLINE

pytestmark = pytest.mark.ring


@contextmanager
def watching(control: WorkloadControl) -> Iterator[list[str]]:
    """See that no vCPU's counter of writes ever goes back; yields what went wrong."""
    wrong: list[str] = []
    over = Event()

    def watch() -> None:
        last = [0] * len(control.statistics().vcpus)
        while not over.wait(0.0005):
            now = [vcpu.writes for vcpu in control.statistics().vcpus]
            wrong.extend(f"{a} to {b}" for a, b in zip(last, now, strict=True) if b < a)
            last = now

    thread = Thread(target=watch)
    thread.start()
    try:
        yield wrong
    finally:
        over.set()
        thread.join()


@pytest.mark.parametrize("vcpus", [1, 4])
async def test_to_and_fro_under_load(patched_qemu: Path, vcpus: int) -> None:
    async with guest(patched_qemu, vcpus=vcpus) as one:
        with watching(one.control) as went_back:
            for tracking in ["ring:4096", "ring:1024", "bitmap", "ring:65536", "bitmap"]:
                original = one.machine
                toggled = await one.to(tracking)
                assert original.returncode == 0
                assert toggled.downtime_seconds is not None
                assert 0 < toggled.downtime_seconds < DEADLINE
                await one.writes_on()
        assert went_back == []


async def test_distributions_qemu(qemu_path: Path) -> None:
    async with guest(qemu_path) as one:
        await one.to("ring:4096")
        assert one.machine.description is not None
        assert one.machine.description.accelerator.properties == {"dirty-ring-size": 4096}
        await one.writes_on()


async def test_paused_guest_stays_paused_and_its_memory_is_the_same(patched_qemu: Path) -> None:
    async with guest(patched_qemu) as one:
        await commands.stop(one.machine.monitor)
        before = hashlib.sha256(one.ram.read()).digest()
        toggled = await one.to("ring:4096")
        assert toggled.downtime_seconds is None
        assert not (await commands.query_status(one.machine.monitor)).running
        assert hashlib.sha256(one.ram.read()).digest() == before
        await commands.cont(one.machine.monitor)
        await one.writes_on()


async def test_twin_that_does_not_start(patched_qemu: Path) -> None:
    async with guest(patched_qemu) as one:
        with pytest.raises(QemuRingError, match="dirty-ring-size"):
            await toggle(one.machine, one.qemu, Accelerator("kvm", {"dirty-ring-size": 3}))
        await one.writes_on()


async def test_twin_that_differs(patched_qemu: Path) -> None:
    """A destination that refuses what it is sent."""
    async with guest(patched_qemu) as one:
        description = one.machine.description
        assert description is not None
        one.machine.description = replace(description, machine="q35")
        with pytest.raises(QemuRingError):
            await toggle(one.machine, one.qemu, Accelerator("kvm"))
        one.machine.description = description
        await one.writes_on()
        await one.to("ring:4096")
        await one.writes_on()


async def test_twin_that_hangs(patched_qemu: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with guest(patched_qemu) as one:
        with (
            after_start(monkeypatch, lambda twin: os.kill(twin.pid or 0, signal.SIGSTOP)),
            pytest.raises(DeadlineError, match="goes on where it was"),
        ):
            await one.to("ring:4096", timeout=10)
        await one.writes_on()


async def test_cancelled_at_many_moments(patched_qemu: Path) -> None:
    async with guest(patched_qemu) as one:
        accelerator = Accelerator("kvm", {"dirty-ring-size": 4096})
        moved = 0
        for step in range(12):
            task = asyncio.create_task(toggle(one.machine, one.qemu, accelerator))
            await asyncio.wait([task], timeout=0.02 * step)
            task.cancel()
            try:
                toggled = await task
            except asyncio.CancelledError:
                pass
            else:
                moved += 1
                one.machine = await one.stack.enter_async_context(toggled.machine)
            await one.writes_on()
        assert moved < 12


async def test_memory_that_would_have_to_be_copied(patched_qemu: Path) -> None:
    async with guest(patched_qemu, share=False) as one:
        with pytest.raises(UsageError, match="memory ram of guest is not shared"):
            await toggle(one.machine, one.qemu, Accelerator("kvm"))


async def test_killed_twin(patched_qemu: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """kill -9 of the twin while the guest is on its way."""
    async with guest(patched_qemu) as one:
        with after_start(monkeypatch, Machine.kill), pytest.raises(QemuRingError):
            await one.to("ring:4096")
        await one.writes_on()
