"""A toggle that is killed, hung, refused or come between at each of its steps."""

from __future__ import annotations

import importlib
import os
import signal
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from qemu_ring.dirty import query_dirty_limits, set_dirty_limit
from qemu_ring.errors import DeadlineError, QemuUnsuitableError, UsageError
from qemu_ring.machine import Machine
from qemu_ring.migration.engine.idle import settled
from qemu_ring.migration.errors import MigrationError
from qemu_ring.qmp import Event, Listener, MigrationStatus, Monitor, commands
from tests.kvm.migration.toggling import MIB, Guest, after_start, guest
from tests.waiting import DEADLINE

pytestmark = pytest.mark.ring

MODULE = importlib.import_module("qemu_ring.migration.toggling.toggle")  # its function hides it
STEPS = ("started", "listening", "begun", "stopped", "sent", "arrived")
"""Those before the twin is told to let the guest run."""


@contextmanager
def at(
    monkeypatch: pytest.MonkeyPatch, wanted: str, what: Callable[[Machine], Awaitable[None]]
) -> Iterator[None]:
    """Do something, given the twin, as soon as a toggle has come so far."""
    twins: list[Machine] = []
    real_until = MODULE._until
    real_support = MODULE._require_support
    real = {name: getattr(commands, name) for name in ("migrate_incoming", "migrate", "cont")}
    seen: list[str] = []

    async def step(name: str) -> None:
        if name == wanted and name not in seen:
            seen.append(name)
            await what(twins[0])

    async def require_support(monitor: Monitor) -> None:
        await real_support(monitor)
        if twins:
            await step("twin")

    async def until(events: Listener, monitor: Monitor, name: str) -> Event:
        event: Event = await real_until(events, monitor, name)
        if name == "STOP":
            await step("stopped")
        elif name == "MIGRATION":
            await step("arrived" if monitor is twins[0].monitor else "sent")
        return event

    async def incoming(monitor: Monitor, uri: str) -> None:
        await step("started")
        await real["migrate_incoming"](monitor, uri)
        await step("listening")

    async def migrate(monitor: Monitor, uri: str) -> None:
        await real["migrate"](monitor, uri)
        await step("begun")

    async def cont(monitor: Monitor) -> None:
        await real["cont"](monitor)
        if monitor is twins[0].monitor:
            await step("let go")

    with after_start(monkeypatch, twins.append), monkeypatch.context() as patch:
        patch.setattr(MODULE, "_until", until)
        patch.setattr(MODULE, "_require_support", require_support)
        patch.setattr(commands, "migrate_incoming", incoming)
        patch.setattr(commands, "migrate", migrate)
        patch.setattr(commands, "cont", cont)
        yield
    assert seen == [wanted]


async def settings(monitor: Monitor) -> tuple[object, object]:
    return await commands.query_capabilities(monitor), await commands.query_parameters(monitor)


async def customise(monitor: Monitor) -> tuple[object, object]:
    """Set what a toggle needs otherwise, so that it has something to set back."""
    await commands.set_capabilities(monitor, {"xbzrle": True, "auto-converge": True})
    await commands.set_parameters(monitor, max_bandwidth=5 * MIB, downtime_limit=77)
    return await settings(monitor)


async def goes_on(one: Guest, before: tuple[object, object]) -> None:
    """The guest runs where it was, as it was, and can be toggled."""
    assert one.machine.returncode is None
    assert (await commands.query_status(one.machine.monitor)).status == "running"
    assert await settings(one.machine.monitor) == before
    await one.writes_on()
    await one.to("ring:4096")
    assert await settings(one.machine.monitor) == before
    await one.writes_on()


@pytest.mark.parametrize("step", STEPS)
async def test_killed_twin(patched_qemu: Path, monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    async def kill(twin: Machine) -> None:
        twin.kill()
        await twin.wait()

    async with guest(patched_qemu) as one:
        before = await customise(one.machine.monitor)
        with at(monkeypatch, step, kill), pytest.raises(MigrationError) as caught:
            await one.to("ring:4096")
        assert "its twin: guest: QEMU ended unasked: killed by SIGKILL" in caught.value.message
        assert caught.value.message.endswith("the guest goes on where it was")
        await goes_on(one, before)


@pytest.mark.parametrize("step", ["started", "begun", "stopped", "arrived"])
async def test_hung_twin(patched_qemu: Path, monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    async def hang(twin: Machine) -> None:
        assert twin.pid is not None
        os.kill(twin.pid, signal.SIGSTOP)

    async with guest(patched_qemu) as one:
        before = await customise(one.machine.monitor)
        with (
            at(monkeypatch, step, hang),
            pytest.raises(DeadlineError, match="goes on where it was"),
        ):
            await one.to("ring:4096", timeout=10)
        await goes_on(one, before)


@pytest.mark.parametrize("step", STEPS)
async def test_killed_original(
    patched_qemu: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    """The guest dies with it, unless the twin has all: then it goes on there."""
    async with guest(patched_qemu) as one:

        async def kill(twin: Machine) -> None:
            one.machine.kill()
            await one.machine.wait()

        with at(monkeypatch, step, kill):
            try:
                await one.to("ring:4096")
            except MigrationError as error:
                assert "the original does not answer" in error.message  # noqa: PT017
                assert step not in ("sent", "arrived")  # by then the twin has all
            else:
                assert step not in ("started", "listening")
                assert (await commands.query_status(one.machine.monitor)).status == "running"
                await one.writes_on()


async def test_twin_killed_once_the_guest_is_its_own(
    patched_qemu: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The original's CPU state is too old for the memory by then: never may it run again."""

    async def kill(twin: Machine) -> None:
        twin.kill()
        await twin.wait()

    async with guest(patched_qemu) as one:
        original = one.machine
        with at(monkeypatch, "let go", kill):
            toggled = await one.to("ring:4096")
        assert original.returncode == 0
        assert toggled.machine.returncode == -signal.SIGKILL
        assert toggled.running


async def test_answer_that_does_not_come_whether_the_guest_runs(
    patched_qemu: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may run at the twin: so it is the twin's."""
    async with guest(patched_qemu) as one:

        async def cancel(twin: Machine) -> None:
            raise DeadlineError("no answer")

        with at(monkeypatch, "let go", cancel):
            toggled = await one.to("ring:4096")
        assert toggled.running
        assert toggled.downtime_seconds is None
        await one.writes_on()


async def test_migration_of_another_is_left_alone(patched_qemu: Path) -> None:
    async with guest(patched_qemu) as one:
        monitor = one.machine.monitor
        await commands.set_parameters(monitor, max_bandwidth=MIB)
        await commands.migrate(monitor, "exec:cat > /dev/null")
        with pytest.raises(UsageError, match="migrates already"):
            await one.to("ring:4096")
        assert (await commands.query_migrate(monitor)).is_active
        await commands.migrate_cancel(monitor)
        await one.writes_on()


async def test_migration_of_another_that_begins_meanwhile(
    patched_qemu: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with guest(patched_qemu) as one:
        monitor, real = one.machine.monitor, commands.migrate

        async def other(twin: Machine) -> None:
            await commands.set_parameters(monitor, max_bandwidth=MIB)
            await real(monitor, "exec:cat > /dev/null")

        with at(monkeypatch, "twin", other), pytest.raises(UsageError, match="migrates already"):
            await one.to("ring:4096")
        assert (await commands.query_migrate(monitor)).is_active
        await commands.migrate_cancel(monitor)
        await one.writes_on()


async def test_migration_of_another_that_qemu_prefers(
    patched_qemu: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It begins after the last look: QEMU refuses ours, and the other one comes to its end."""
    async with guest(patched_qemu) as one:
        monitor, real = one.machine.monitor, commands.migrate

        async def late(monitor: Monitor, uri: str) -> None:
            await commands.set_capabilities(monitor, {"x-ignore-shared": False})
            await commands.set_parameters(monitor, max_bandwidth=MIB)
            await real(monitor, "exec:cat > /dev/null")
            await real(monitor, uri)

        monkeypatch.setattr(commands, "migrate", late)
        with pytest.raises(MigrationError, match="goes on where it was"):
            await one.to("ring:4096")
        assert (await commands.query_migrate(monitor)).is_active
        await commands.migrate_cancel(monitor)
        await one.writes_on()


async def test_guest_that_has_moved_elsewhere_meanwhile_stays_stopped(
    patched_qemu: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with guest(patched_qemu) as one:
        monitor, real = one.machine.monitor, commands.migrate

        async def other(twin: Machine) -> None:
            await commands.set_parameters(monitor, max_bandwidth=1 << 40, downtime_limit=10_000)
            with monitor.events("STOP") as stopped:
                await real(monitor, "exec:cat > /dev/null")
                await stopped.wait(timeout=DEADLINE)
            assert await settled(monitor) is MigrationStatus.COMPLETED

        with (
            at(monkeypatch, "twin", other),
            pytest.raises(UsageError, match="cannot be moved, it is in state"),
        ):
            await one.to("ring:4096")
        assert (await commands.query_status(monitor)).status == "postmigrate"


async def test_guest_that_waits_for_its_migration(
    patched_qemu: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with guest(patched_qemu, incoming="defer") as one:
        with (
            after_start(monkeypatch, lambda twin: pytest.fail("a twin was started")),
            pytest.raises(UsageError, match="it is in state inmigrate"),
        ):
            await one.to("ring:4096")


async def test_guest_that_blocks_migration(
    patched_qemu: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    blocker = (
        *("-object", "memory-backend-ram,id=shm,size=2M,share=on"),
        *("-device", "ivshmem-plain,memdev=shm,master=off"),
    )
    async with guest(patched_qemu, extra=blocker) as one:
        with (
            after_start(monkeypatch, lambda twin: pytest.fail("a twin was started")),
            pytest.raises(QemuUnsuitableError, match=r"cannot migrate: .*ivshmem"),
        ):
            await one.to("ring:4096")
        await one.writes_on()


async def test_original_that_does_not_end_as_it_should(patched_qemu: Path) -> None:
    async with guest(patched_qemu) as one:
        original, real = one.machine, one.machine.close

        async def close() -> None:
            await real()
            raise OSError("the disk is full")

        original.close = close  # type: ignore[method-assign]
        try:
            toggled = await one.to("ring:4096")
        finally:
            original.close = real  # type: ignore[method-assign]
        assert toggled.notes == ("the original did not end as it should: the disk is full",)
        await one.writes_on()


async def test_twin_that_does_not_end_as_it_should(
    patched_qemu: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The original has to be told to go on all the same: it calls the migration completed."""

    async def fail(twin: Machine) -> None:
        real = twin.close
        twin.kill()

        async def close() -> None:
            await real()
            raise OSError("the disk is full")

        monkeypatch.setattr(twin, "close", close)

    async with guest(patched_qemu) as one:
        with (
            at(monkeypatch, "arrived", fail),
            pytest.raises(MigrationError, match="the disk is full; the guest goes on where it was"),
        ):
            await one.to("ring:4096")
        await one.writes_on()


async def test_what_was_set_comes_along(patched_qemu: Path) -> None:
    async with guest(patched_qemu, "ring:4096", vcpus=2) as one:
        before = await customise(one.machine.monitor)
        await set_dirty_limit(one.machine.monitor, 64 * MIB, vcpu=1)
        toggled = await one.to("ring:1024")
        assert toggled.notes == ()
        assert await settings(one.machine.monitor) == before
        (limit,) = await query_dirty_limits(one.machine.monitor)
        assert (limit.vcpu, limit.limit) == (1, 64 * MIB)
        toggled = await one.to("bitmap")  # which knows no limits
        (note,) = toggled.notes
        assert "dirty limits are not what they were" in note
        await one.writes_on()
