"""Attaching to a QEMU that someone else started, by plain arguments or by libvirt: it goes on."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from qemu_ring._compat import timeout
from qemu_ring.errors import QemuRingError
from qemu_ring.machine import Machine
from qemu_ring.migration import HeldPrecopy
from qemu_ring.qmp import CommandError, commands
from tests.command import COMMAND
from tests.processes import is_running, killed_if_it_fails
from tests.qemu.libvirt import Libvirt, listens, running_libvirt
from tests.waiting import DEADLINE, wait_until

pytestmark = pytest.mark.qemu

ENDING = ("quit", "system_powerdown", "system_reset", "stop", "system_wakeup")


@dataclass
class Foreign:
    """A QEMU that we did not start, and what its monitors were told."""

    pid: int
    socket: Path
    log: Path

    def told(self) -> str:
        """The QMP commands so far, as QEMU traced them."""
        return self.log.read_text()


@pytest.fixture
def foreign(qemu_path: Path, short_path: Path) -> Iterator[Foreign]:
    """A user's own QEMU: a chardev of theirs, memory without a file, no word of ours."""
    socket, log = short_path / "theirs.sock", short_path / "log"
    arguments = [
        *("-name", "theirs", "-M", "q35,accel=tcg", "-m", "32", "-smp", "2", "-display", "none"),
        *("-chardev", f"socket,id=mychar,path={socket},server=on,wait=off"),
        *("-mon", "chardev=mychar,mode=control"),
        *("-serial", "null", "-bios", "/dev/null", "-trace", "handle_qmp_command", "-D", str(log)),
    ]
    # Without a BIOS nothing runs, but QEMU wants one of a size.
    bios = short_path / "bios"
    bios.write_bytes(b"\xf4\xeb\xfd".ljust(65536 - 16, b"\0") + b"\xe9\x0d\x00".ljust(16, b"\0"))
    arguments[arguments.index("/dev/null")] = str(bios)
    with killed_if_it_fails(subprocess.Popen([str(qemu_path), *arguments])) as process:
        try:
            wait_until(lambda: listens(socket), "QEMU listens")
            yield Foreign(process.pid, socket, log)
            assert process.poll() is None  # it is the test's to end, and nobody else's
        finally:
            process.kill()


async def test_all_that_asks_leaves_it_alone(foreign: Foreign) -> None:
    async with await Machine.attach(foreign.socket) as machine:
        assert not machine.owned
        assert (await commands.query_status(machine.monitor)).running
        assert len(await commands.query_cpus_fast(machine.monitor)) == 2
        with pytest.raises(ValueError, match="not ours"):
            machine.kill()
        with pytest.raises(ValueError, match="not ours"):
            await machine.wait()
    for words in (["slots"], ["rings"], ["policy", "get"], ["policy", "set", "auto"]):
        done = await asyncio.create_subprocess_exec(
            *(*COMMAND, *words, str(foreign.socket)),
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.DEVNULL,
        )
        assert await asyncio.wait_for(done.wait(), 30) in (3, 4)  # not patched, or no KVM
    self_told = foreign.told()
    assert "query-status" in self_told  # else the trace would show nothing of what follows
    assert not [word for word in ENDING if f'"{word}"' in self_told]
    assert is_running(foreign.pid)


async def test_errors_and_cancellation_leave_it_alone(foreign: Foreign) -> None:
    with pytest.raises(QemuRingError, match="ours"):
        async with await Machine.attach(foreign.socket):
            raise QemuRingError("ours")
    with pytest.raises(CommandError):
        async with await Machine.attach(foreign.socket) as machine:
            await machine.monitor.execute("no-such-command")
    with contextlib.suppress(TimeoutError):
        async with timeout(0.2), await Machine.attach(foreign.socket):
            await asyncio.sleep(30)
    async with await Machine.attach(foreign.socket) as machine:
        assert (await commands.query_status(machine.monitor)).running
    told = foreign.told()
    assert told.count('"no-such-command"') == 1
    assert not [word for word in ENDING if f'"{word}"' in told]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_controller_that_is_killed_leaves_it_alone(
    foreign: Foreign, number: signal.Signals
) -> None:
    script = """
import asyncio, sys
from qemu_ring.machine import Machine
async def main():
    async with await Machine.attach(sys.argv[1]):
        print("attached", flush=True)
        await asyncio.sleep(60)
asyncio.run(main())
"""
    with killed_if_it_fails(
        subprocess.Popen(
            [sys.executable, "-c", script, str(foreign.socket)], stdout=subprocess.PIPE, text=True
        )
    ) as controller:
        assert controller.stdout is not None
        assert controller.stdout.readline() == "attached\n"
        controller.send_signal(number)
        controller.wait(10)
    assert is_running(foreign.pid)
    assert not [word for word in ENDING if f'"{word}"' in foreign.told()]


@pytest.fixture
def twin(foreign: Foreign, qemu_path: Path, short_path: Path) -> Iterator[Path]:
    """The monitor of a QEMU that waits for the foreign one's guest; not ours either."""
    socket = short_path / "twin.sock"
    with killed_if_it_fails(
        subprocess.Popen(
            [
                *(
                    str(qemu_path),
                    "-M",
                    "q35,accel=tcg",
                    "-m",
                    "32",
                    "-smp",
                    "2",
                    "-display",
                    "none",
                ),
                *("-qmp", f"unix:{socket},server=on,wait=off", "-bios", str(short_path / "bios")),
                *("-serial", "null", "-incoming", "defer"),
            ]
        )
    ) as process:
        try:
            wait_until(lambda: listens(socket), "QEMU listens")
            yield socket
            assert process.poll() is None
        finally:
            process.kill()


async def test_it_can_be_migrated_and_neither_side_is_ended(foreign: Foreign, twin: Path) -> None:
    async with (
        await Machine.attach(foreign.socket, name="source") as source,
        await Machine.attach(twin, name="destination") as destination,
        HeldPrecopy(source, destination) as migration,
    ):
        with destination.monitor.events("RESUME") as resumed:
            # It dirties nothing, so the migration ends before it could be held.
            with pytest.raises(QemuRingError, match="completed while it should be held"):
                await migration.hold()
            await resumed.wait(timeout=DEADLINE)
        assert (await commands.query_status(destination.monitor)).running
    assert is_running(foreign.pid)
    assert '"quit"' not in foreign.told()


SECOND = "second.qmp"
DOMAIN = """
<domain type='qemu' xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'>
  <name>theirs</name>
  <memory unit='MiB'>32</memory>
  <vcpu>2</vcpu>
  <os><type arch='x86_64' machine='pc'>hvm</type></os>
  <devices>
    <emulator>{qemu}</emulator>
    <controller type='usb' model='none'/>
    <memballoon model='none'/>
  </devices>
  <qemu:commandline>
    <qemu:arg value='-qmp'/>
    <qemu:arg value='unix:{socket},server=on,wait=off'/>
  </qemu:commandline>
</domain>
"""


@pytest.fixture
def libvirt(qemu_path: Path) -> Iterator[Libvirt]:
    """With a domain, whose second monitor is for us."""
    with tempfile.TemporaryDirectory(prefix="qemu-ring-libvirt-") as name:
        home = Path(name)
        with running_libvirt(home) as found:
            domain = home / "domain.xml"
            domain.write_text(DOMAIN.format(qemu=qemu_path, socket=home / SECOND))
            found.virsh("create", str(domain))
            try:
                yield found
            finally:
                found.virsh("destroy", "theirs")


async def test_domain_of_libvirt_is_looked_at_and_stays(libvirt: Libvirt) -> None:
    async with await Machine.attach(libvirt.home / SECOND, name="theirs") as machine:
        assert (await commands.query_status(machine.monitor)).running
        names = {device.label for device in await commands.query_chardev(machine.monitor)}
        assert "charmonitor" in names  # libvirt's own monitor, beside ours
        blocks = await commands.query_memdev(machine.monitor)
        assert sum(block.size for block in blocks) == 32 << 20
        assert await asyncio.to_thread(libvirt.virsh, "domstate", "theirs") == "running"
        await asyncio.to_thread(libvirt.virsh, "suspend", "theirs")
        assert not (await commands.query_status(machine.monitor)).running
        await asyncio.to_thread(libvirt.virsh, "resume", "theirs")
    with pytest.raises(QemuRingError, match="ours"):
        async with await Machine.attach(libvirt.home / SECOND):
            raise QemuRingError("ours")
    assert await asyncio.to_thread(libvirt.virsh, "domstate", "theirs") == "running"
