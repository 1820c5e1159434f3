"""A QEMU's end, whatever comes between; what tests leave behind is looked for after each."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from qemu_ring.machine import (
    Accelerator,
    Machine,
    MachineDescription,
    MemoryBackend,
    UnnamedFile,
    named_socket,
    serving_binary,
)

pytestmark = pytest.mark.qemu

MIB = 1 << 20


@pytest.fixture
def description() -> Iterator[MachineDescription]:
    with UnnamedFile("ram", 16 * MIB) as file:
        yield MachineDescription(accelerator=Accelerator("tcg"), memory=MemoryBackend("ram", file))


def memfds() -> set[str]:
    found = set()
    for link in Path("/proc/self/fd").iterdir():
        try:
            found.add(str(link.readlink()) + link.name)
        except FileNotFoundError:
            continue
    return {name for name in found if "memfd" in name}


async def test_full_disk_is_no_error(
    qemu_path: Path,
    description: MachineDescription,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    (tmp_path / "m.log").symlink_to("/dev/full")
    machine = await Machine.start(
        qemu_path,
        MachineDescription(
            accelerator=description.accelerator,
            memory=description.memory,
            trace=("runstate_set",),
        ),
        name="m",
        log_directory=tmp_path,
    )
    await machine.close()
    assert machine.returncode == 0
    assert machine.unsaved == f"{tmp_path / 'm.log'}: No space left on device"
    assert machine.unsaved in caplog.text
    assert (tmp_path / "m.serial").exists()  # the others are kept


async def test_log_directory_that_is_gone_is_no_error(
    qemu_path: Path, description: MachineDescription, tmp_path: Path
) -> None:
    directory = tmp_path / "logs"
    directory.mkdir()
    async with await Machine.start(qemu_path, description, log_directory=directory) as machine:
        directory.rmdir()
    assert machine.returncode == 0
    assert "No such file" in machine.unsaved


async def test_cancelled_close_leaves_nothing(
    qemu_path: Path, description: MachineDescription
) -> None:
    before = memfds()
    machine = await Machine.start(qemu_path, description)
    assert machine.pid is not None
    os.kill(machine.pid, signal.SIGSTOP)  # slow to end, as a large guest is
    task = asyncio.create_task(machine.close())
    await asyncio.wait({task}, timeout=0.2)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert machine.returncode == -signal.SIGKILL
    assert memfds() == before


async def test_start_cancelled_while_it_looks_what_went_wrong(
    description: MachineDescription, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "mute"
    program.write_text("#!/bin/sh\nexec sleep 60\n")
    program.chmod(0o755)
    looking = asyncio.Event()

    async def ends(_: object) -> bool:
        looking.set()
        await asyncio.sleep(60)
        return True

    monkeypatch.setattr("qemu_ring.machine.machine._ends", ends)
    before = memfds()
    task = asyncio.create_task(Machine.start(program, description, timeout=0.1))
    await asyncio.wait_for(looking.wait(), 10)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert memfds() == before


async def test_binary_behind_a_socket(
    qemu_path: Path, description: MachineDescription, tmp_path: Path
) -> None:
    path = tmp_path / "m"
    async with (
        named_socket(path) as listening,
        await Machine.start(qemu_path, description, monitors=[listening]),
    ):
        for _ in range(2):
            with socket.socket(socket.AF_UNIX) as client:
                client.setblocking(False)
                await asyncio.get_running_loop().sock_connect(client, str(path))
                async with await Machine.attach(client):
                    binary = await serving_binary(client)
                    assert binary is not None
                    assert binary.path.samefile(qemu_path)
                    assert len(binary.sha256) == 64
            listening.listen()  # now this process is who listened last
    with socket.socket() as tcp:
        assert await serving_binary(tcp) is None
