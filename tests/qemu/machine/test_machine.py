"""Starting, attaching to and ending a real QEMU."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from qemu_ring._compat import timeout
from qemu_ring.errors import HostError, QemuUnsuitableError, UsageError
from qemu_ring.machine import (
    Accelerator,
    Device,
    Disk,
    Machine,
    MachineDescription,
    MachineDiedError,
    MachineError,
    MemoryBackend,
    UnnamedFile,
    find_qemu,
    probe_qemu,
)
from qemu_ring.qmp import ConnectError, DisconnectedError, commands
from tests.processes import is_running
from tests.waiting import until

pytestmark = pytest.mark.qemu

MIB = 1 << 20


@pytest.fixture
def ram() -> Iterator[MemoryBackend]:
    with UnnamedFile("ram", 16 * MIB) as file:
        yield MemoryBackend("ram", file)


def described(ram: MemoryBackend, **more: object) -> MachineDescription:
    return MachineDescription(accelerator=Accelerator("tcg"), memory=ram, **more)  # type: ignore[arg-type]


def children(pid: int) -> list[int]:
    found: list[int] = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        found += map(int, (task / "children").read_text().split())
    return found


async def gone(pid: int) -> None:
    await until(lambda: not is_running(pid), f"process {pid} is gone")


async def test_description_becomes_a_machine(
    qemu_path: Path, ram: MemoryBackend, tmp_path: Path
) -> None:
    disk = tmp_path / "disk, with a comma.img"
    disk.write_bytes(bytes(MIB))
    with UnnamedFile("extra", 2 * MIB) as file:
        description = described(
            ram,
            machine="q35",
            vcpus=3,
            paused=True,
            backends=(MemoryBackend("extra", file),),
            devices=(Device("ivshmem-plain", {"memdev": "extra", "id": "shared"}),),
            disks=(Disk(disk, read_only=True),),
            extra=("-name", "example"),
        )
        async with await Machine.start(qemu_path, description, name="m") as machine:
            assert machine.owned
            assert machine.pid is not None
            assert not (await commands.query_status(machine.monitor)).running
            assert len(await commands.query_cpus_fast(machine.monitor)) == 3
            sizes = {m.id: (m.size, m.share) for m in await commands.query_memdev(machine.monitor)}
            assert sizes == {"ram": (16 * MIB, True), "extra": (2 * MIB, True)}
            pci = [d for bus in await commands.query_pci(machine.monitor) for d in bus.devices]
            assert "shared" in {device.qdev_id for device in pci}
            block = await machine.monitor.execute("query-block")
            assert str(disk) in str(block)
            pid = machine.pid
    assert not is_running(pid)
    assert machine.returncode == 0


async def test_logs_serial_and_trace_events_are_kept(
    qemu_path: Path, ram: MemoryBackend, tmp_path: Path
) -> None:
    image = tmp_path / "hello.bin"
    # 16-bit: print "hi" on the first serial port, then hlt for ever.
    code = b"\xba\xf8\x03\xb0h\xee\xb0i\xee\xf4\xeb\xfd"
    image.write_bytes(code.ljust(65536 - 16, b"\0") + b"\xe9\x0d\x00".ljust(16, b"\0"))
    description = described(ram, firmware=image, log=("guest_errors",), trace=("runstate_set",))
    async with await Machine.start(
        qemu_path, description, name="kept", log_directory=tmp_path
    ) as machine:
        await until(lambda: machine.text("serial") == "hi", "it says hi")
        await commands.stop(machine.monitor)
    assert machine.text("serial") == "hi"  # also after the end
    assert (tmp_path / "kept.serial").read_text() == "hi"
    assert "runstate_set" in (tmp_path / "kept.log").read_text()
    with pytest.raises(ValueError, match="no text called"):
        machine.text("diary")


async def test_qemu_that_refuses_its_arguments(qemu_path: Path, ram: MemoryBackend) -> None:
    description = described(ram, extra=("-device", "no-such-device"))
    with pytest.raises(MachineError, match=r"exit status 1: .*no-such-device") as caught:
        await Machine.start(qemu_path, description)
    assert "\n" not in str(caught.value)


async def test_program_whose_monitor_never_answers(ram: MemoryBackend, tmp_path: Path) -> None:
    program = tmp_path / "mute"
    program.write_text("#!/bin/sh\necho I am mute\nexec sleep 60\n")
    program.chmod(0o755)
    with pytest.raises(MachineError, match="did not answer: I am mute"):
        await Machine.start(program, described(ram), timeout=0.5)


async def test_qemu_that_dies_is_explained(qemu_path: Path, ram: MemoryBackend) -> None:
    with pytest.raises(MachineDiedError, match="m: QEMU ended unasked: killed by SIGSEGV"):
        async with await Machine.start(qemu_path, described(ram), name="m") as machine:
            assert machine.pid is not None
            os.kill(machine.pid, signal.SIGSEGV)
            await machine.monitor.wait_disconnected()
            await commands.query_status(machine.monitor)


async def test_another_error_is_not_blamed_on_qemu(qemu_path: Path, ram: MemoryBackend) -> None:
    with pytest.raises(UsageError, match="mine"):
        async with await Machine.start(qemu_path, described(ram)):
            raise UsageError("mine")


async def test_cancelled_start_leaves_nothing(qemu_path: Path, ram: MemoryBackend) -> None:
    # At ever later moments; the autouse fixture looks for what is left.
    before = children(os.getpid())  # a browser of other tests in this process
    for milliseconds in range(0, 60, 4):
        with contextlib.suppress(TimeoutError):
            async with (
                timeout(milliseconds / 1000),
                await Machine.start(qemu_path, described(ram)),
            ):
                await asyncio.sleep(30)
        assert children(os.getpid()) == before


@contextlib.asynccontextmanager
async def served(qemu_path: Path, ram: MemoryBackend, path: Path) -> AsyncIterator[Machine]:
    """A QEMU with a monitor for others."""
    description = described(ram, extra=("-qmp", f"unix:{path},server=on,wait=off"))
    async with await Machine.start(qemu_path, description) as machine:
        yield machine


async def test_attached_qemu_goes_on_when_we_leave(
    qemu_path: Path, ram: MemoryBackend, tmp_path: Path
) -> None:
    path = tmp_path / "monitor"
    async with served(qemu_path, ram, path) as machine:
        async with await Machine.attach(path, name="attached") as attached:
            assert not attached.owned
            assert attached.pid is None
            assert attached.text("log") == ""
            assert (await commands.query_status(attached.monitor)).running
            with pytest.raises(ValueError, match="not ours"):
                attached.kill()
        assert (await commands.query_status(machine.monitor)).running
    with pytest.raises(ConnectError):
        await Machine.attach(path)


@pytest.mark.parametrize("identified", [True, False])
async def test_attached_qemu_that_ends(
    qemu_path: Path, ram: MemoryBackend, tmp_path: Path, identified: bool
) -> None:
    """It has ended if that was seen; of one whose monitor is lost no more than that is known."""
    path = tmp_path / "monitor"
    known = MachineDiedError if identified else DisconnectedError
    async with served(qemu_path, ram, path) as machine:
        with pytest.raises(known, match="attached: "):
            async with await Machine.attach(path, name="attached") as attached:
                if identified:
                    await attached.identify()
                machine.kill()
                await attached.monitor.wait_disconnected()
                await commands.query_status(attached.monitor)
        with contextlib.suppress(DisconnectedError):
            await machine.monitor.close()


async def test_end_that_is_seen_after_the_monitor_is_gone(
    qemu_path: Path, ram: MemoryBackend, tmp_path: Path
) -> None:
    """The kernel closes a process's sockets first: on a busy host, noticeably before it ends."""
    path = tmp_path / "monitor"
    async with served(qemu_path, ram, path) as machine:
        machine.may_end()
        with pytest.raises(MachineDiedError, match="attached: "):
            async with await Machine.attach(path, name="attached") as attached:
                await attached.identify()
                await attached.monitor.close()
                asyncio.get_running_loop().call_later(0.3, machine.kill)
                await commands.query_status(attached.monitor)


CONTROLLER = """
import asyncio, sys
from pathlib import Path
from qemu_ring.machine import *

async def main():
    with UnnamedFile("ram", 16 << 20) as file:
        description = MachineDescription(
            accelerator=Accelerator("tcg"), memory=MemoryBackend("ram", file))
        async with await Machine.start(Path(sys.argv[1]), description) as machine:
            print(machine.pid, flush=True)
            await asyncio.sleep(60)

asyncio.run(main())
"""


async def test_qemu_dies_with_its_controller(qemu_path: Path) -> None:
    controller = await asyncio.create_subprocess_exec(
        sys.executable, "-c", CONTROLLER, str(qemu_path), stdout=asyncio.subprocess.PIPE
    )
    assert controller.stdout is not None
    pid = int(await asyncio.wait_for(controller.stdout.readline(), 30))
    assert is_running(pid)
    controller.kill()
    await controller.wait()
    await gone(pid)


async def test_probe_knows_this_qemu(qemu_path: Path) -> None:
    qemu = await probe_qemu(qemu_path)
    assert qemu.version[0].isdigit()
    assert {"pc", "q35"} <= qemu.machines
    assert qemu.kvm
    assert qemu.ring_property in ("dirty-ring-size", "dirty-gfn-count", None)
    assert len(qemu.sha256) == 64
    document = qemu.as_dict()
    assert document["patched"] is False
    assert "machines" not in document


async def test_binary_is_started_once_to_be_probed(qemu_path: Path, tmp_path: Path) -> None:
    program, starts = tmp_path / "qemu", tmp_path / "starts"

    def write(words: str) -> None:
        """As a build does: another file under the same name."""
        new = tmp_path / "new"
        new.write_text(f'#!/bin/sh\n# {words}\necho x >> {starts}\nexec {qemu_path} "$@"\n')
        new.chmod(0o755)
        new.rename(program)

    write("one")
    first = await probe_qemu(program)
    assert await probe_qemu(program) is first
    assert starts.read_text().split() == ["x"]
    write("another")
    second = await probe_qemu(program)
    assert second.sha256 != first.sha256
    assert starts.read_text().split() == ["x", "x"]


@pytest.mark.parametrize("program", ["/bin/true", "/bin/ls", "/bin/cat"])
async def test_program_that_is_no_qemu(program: str) -> None:
    with pytest.raises(QemuUnsuitableError, match=f"{program} is no usable QEMU") as caught:
        await probe_qemu(Path(program))
    assert "\n" not in str(caught.value)


async def test_file_that_cannot_be_run(tmp_path: Path) -> None:
    program = tmp_path / "garbage"
    program.write_bytes(b"\x7fELF garbage")
    program.chmod(0o755)
    with pytest.raises(QemuUnsuitableError, match="is no usable QEMU"):
        await probe_qemu(program)


def test_find_qemu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = tmp_path / "plain"
    plain.write_text("")
    for path, message in (
        (tmp_path, "is a directory"),
        (tmp_path / "none", "does not exist"),
        (plain, "is not a program"),
    ):
        with pytest.raises(UsageError, match=message):
            find_qemu(str(path))
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))  # no patched QEMU there
    with pytest.raises(HostError, match=r"not installed; .*apt-get install qemu-system-x86"):
        find_qemu()


def test_unnamed_files(tmp_path: Path) -> None:
    with UnnamedFile("some", 4 * MIB) as file, UnnamedFile("disk", MIB, directory=tmp_path) as disk:
        assert os.fstat(file.fd).st_size == file.size == 4 * MIB
        assert os.fstat(file.fd).st_blocks == 0
        assert list(tmp_path.iterdir()) == []
        disk.write(b"abc")
        assert disk.read() == b"abc"
    file.close()
    with pytest.raises(HostError, match="No such file"):
        UnnamedFile("x", 1, directory=tmp_path / "none")
    with pytest.raises(HostError, match=r"not enough space in .* MiB needed"):
        UnnamedFile("x", 1 << 60, directory=tmp_path)
    with pytest.raises(HostError, match="cannot hold unnamed files"):
        UnnamedFile("x", 0, directory=Path("/proc/self"))
