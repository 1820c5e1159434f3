"""The monitor of a real QEMU: what its schema offers, typed commands, events, and its end."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import pytest_asyncio

from qemu_ring.qmp import (
    CommandError,
    CommandTimeoutError,
    ConnectError,
    DisconnectedError,
    MigrationStatus,
    Monitor,
    commands,
)
from qemu_ring.qmp.dirty import query_dirty_rate
from tests.waiting import DEADLINE

pytestmark = pytest.mark.qemu

Process = asyncio.subprocess.Process


@asynccontextmanager
async def running(
    qemu: Path, *arguments: str, mode: str = "control"
) -> AsyncIterator[tuple[Process, socket.socket]]:
    """Run a QEMU without a machine, with one monitor on the socket that this gives."""
    ours, theirs = socket.socketpair()
    with theirs:
        process = await asyncio.create_subprocess_exec(
            qemu,
            *("-machine", "none", "-display", "none", "-nodefaults", "-accel", "tcg"),
            *("-chardev", f"socket,id=m,fd={theirs.fileno()}", "-mon", f"chardev=m,mode={mode}"),
            *arguments,
            pass_fds=[theirs.fileno()],
        )
    try:
        yield process, ours
    finally:
        if process.returncode is None:
            process.kill()
        await asyncio.wait_for(process.wait(), 10)


@pytest_asyncio.fixture
async def started(qemu_path: Path, tmp_path: Path) -> AsyncIterator[tuple[Process, Monitor]]:
    """A QEMU with a monitor that is connected, and a second one on a unix socket."""
    second = f"unix:{tmp_path}/second.sock,server=on,wait=off"
    async with (
        running(qemu_path, "-qmp", second) as (process, ours),
        await Monitor.connect(ours, name="real") as monitor,
    ):
        yield process, monitor


@pytest.fixture
def process(started: tuple[Process, Monitor]) -> Process:
    return started[0]


@pytest.fixture
def monitor(started: tuple[Process, Monitor]) -> Monitor:
    return started[1]


async def test_schema(monitor: Monitor) -> None:
    schema = await monitor.schema()
    assert schema.has_command("query-status")
    assert schema.has_command("device_add")
    assert not schema.has_command("make-coffee")
    assert schema.has_event("STOP")
    assert not schema.has_event("query-status")
    assert {"max-bandwidth", "multifd-compression"} <= schema.command_arguments(
        "migrate-set-parameters"
    )
    assert {"none", "zlib"} <= schema.enum_values("migrate-set-parameters", "multifd-compression")
    assert {"mbps", "dirty-sync-count"} <= schema.command_returns("query-migrate", "ram")
    # through an object's variants, and through an alternate that leads back to the same object
    assert "qcow2" in schema.enum_values("blockdev-add", "driver")
    assert "qcow2" in schema.enum_values("blockdev-add", "backing", "file", "driver")
    assert {"id", "qom-type", "mem-path"} <= schema.command_arguments("object-add")


async def test_schema_and_query_agree_on_capabilities(monitor: Monitor) -> None:
    known = (await monitor.schema()).enum_values(
        "migrate-set-capabilities", "capabilities", "capability"
    )
    assert set(await commands.query_capabilities(monitor)) == known
    assert "events" in known


async def test_typed_commands(process: Process, monitor: Monitor) -> None:
    version = await commands.query_version(monitor)
    assert version.qemu.triple == monitor.version >= (4, 0, 0)
    assert version.package == monitor.package
    assert (await commands.query_status(monitor)).running
    assert not (await commands.query_kvm(monitor)).enabled
    assert await commands.query_cpus_fast(monitor) == []
    assert (await commands.query_migrate(monitor)).status is None
    assert await commands.query_pci(monitor) == []
    assert "m" in [device.label for device in await commands.query_chardev(monitor)]
    assert (await query_dirty_rate(monitor)).dirty_rate is None
    assert "running" in await commands.human(monitor, "info status")
    properties = await commands.device_list_properties(monitor, "virtio-rng-pci")
    assert "max-bytes" in [prop.name for prop in properties]
    await commands.trace_event_set_state(monitor, "qmp_*", False)


async def test_objects(monitor: Monitor) -> None:
    await commands.object_add(monitor, "memory-backend-ram", "ram0", {"size": 1 << 20})
    [backend] = await commands.query_memdev(monitor)
    assert (backend.id, backend.size) == ("ram0", 1 << 20)
    assert await commands.qom_get(monitor, "/objects/ram0", "size") == 1 << 20
    await commands.qom_set(monitor, "/objects/ram0", "merge", False)
    properties = await commands.qom_list_properties(monitor, "memory-backend-ram")
    assert "merge" in [prop.name for prop in properties]
    assert not (await commands.query_memdev(monitor))[0].merge
    await commands.object_del(monitor, "ram0")
    with pytest.raises(CommandError) as caught:
        await commands.object_del(monitor, "ram0")
    assert caught.value.error_class == "GenericError"
    assert "ram0" in caught.value.description


async def test_migration_into_a_sent_fd(monitor: Monitor) -> None:
    """A machine with nothing in it migrates too: parameters, capabilities, events, status."""
    await commands.set_parameters(monitor, max_bandwidth=1 << 20, downtime_limit=10)
    parameters = await commands.query_parameters(monitor)
    assert (parameters["max-bandwidth"], parameters["downtime-limit"]) == (1 << 20, 10)
    await commands.set_capabilities(monitor, {"events": True})
    assert (await commands.query_capabilities(monitor))["events"]
    reading, writing = os.pipe()
    try:
        await monitor.send_fd("out", writing)
        with monitor.events("MIGRATION") as events:
            await commands.migrate(monitor, "fd:out")
            await events.wait(
                lambda event: MigrationStatus(event.data["status"]).is_final,
                timeout=DEADLINE,
                what="end of the migration",
            )
        info = await commands.query_migrate(monitor)
        assert info.status is MigrationStatus.COMPLETED, info
        assert info.ram is not None
        assert info.total_time_ms is not None
        assert os.read(reading, 4) == b"QEVM"  # a migration stream begins with this
    finally:
        os.close(reading)
        os.close(writing)


async def test_events_of_stop_and_cont(monitor: Monitor) -> None:
    with monitor.events("STOP", "RESUME") as events:
        await commands.stop(monitor)
        await commands.cont(monitor)
        assert [(await events.wait()).name, (await events.wait()).name] == ["STOP", "RESUME"]


async def test_second_client_of_a_monitor(monitor: Monitor, tmp_path: Path) -> None:
    path = tmp_path / "second.sock"
    async with await Monitor.connect(path) as first:
        assert (await commands.query_status(first)).running
        with pytest.raises(ConnectError, match="one client per monitor"):
            await Monitor.connect(path, timeout=0.2)
    async with await Monitor.connect(path) as again:
        assert (await commands.query_status(again)).running


async def test_human_monitor_is_no_qmp(qemu_path: Path) -> None:
    async with running(qemu_path, mode="readline") as (_, ours):
        with pytest.raises(ConnectError, match=r"no JSON: b.QEMU .*mode=control"):
            await Monitor.connect(ours)


async def test_stopped_qemu_times_out_and_recovers(process: Process, monitor: Monitor) -> None:
    process.send_signal(signal.SIGSTOP)
    with pytest.raises(CommandTimeoutError):
        await commands.query_status(monitor, timeout=0.1)
    process.send_signal(signal.SIGCONT)
    assert (await commands.query_kvm(monitor)).present in {True, False}


async def test_killed_qemu(process: Process, monitor: Monitor) -> None:
    with monitor.events() as events:
        process.kill()
        await asyncio.wait_for(monitor.wait_disconnected(), 10)
        with pytest.raises(DisconnectedError, match="the peer closed the connection"):
            await anext(events)
    with pytest.raises(DisconnectedError, match="query-status was not sent"):
        await commands.query_status(monitor)


async def test_quit(process: Process, monitor: Monitor) -> None:
    with monitor.events("SHUTDOWN") as events:
        await commands.quit_(monitor)
        assert (await events.wait()).data["reason"] == "host-qmp-quit"
    await asyncio.wait_for(monitor.wait_disconnected(), 10)
    assert await asyncio.wait_for(process.wait(), 10) == 0
