"""What the test does with a machine's devices, as the guest's drivers and as their peers."""

from __future__ import annotations

import asyncio
import socket
import struct
import subprocess
import zlib
from contextlib import ExitStack
from pathlib import Path

from qemu_ring.qmp import commands
from tests.qemu.machines.parts import BALLOON_SLOT, EXTRA, MAC, MEM_SLOT, MIB, NET_SLOT, Plug, Site
from tests.qemu.machines.qemus import Qemu
from tests.qemu.machines.qtest import Queue, Virtio
from tests.qemu.machines.vhost_user import Logging, Receiver
from tests.waiting import DEADLINE, until

_NET_MEMORY, _MEM_MEMORY, _BALLOON_MEMORY = 2 * MIB, 3 * MIB, 4 * MIB
_PACKETS = 5 * MIB  # up to the firmware's region
_BALLOONED = 20 * MIB
_BALLOON_PAGES = 256
_BUFFERS = 256
_PAGE = 4096
_HEADER = 12
_IS_MAC = 1 << 5
_PLUG_REQUEST = struct.Struct("<HHHHQHHHH")


class NetDriver:
    """Takes packets of a virtio-net device, and asks for more."""

    def __init__(self, qemu: Qemu) -> None:
        self._device = Virtio(qemu.qtest, NET_SLOT, _NET_MEMORY)
        self._receive: Queue

    async def set_up(self) -> None:
        self._receive, _ = await self._device.set_up(_IS_MAC, [_BUFFERS, _BUFFERS])
        for index in range(_BUFFERS):
            await self._receive.describe(index, [(_PACKETS + index * _PAGE, _PAGE, True)])
        await self._receive.post(list(range(_BUFFERS)))

    def comes_to(self, qemu: Qemu) -> None:
        self._device.qtest = qemu.qtest

    async def refill(self) -> None:
        """Give back all buffers that were used."""
        spare = await self._receive.used() + _BUFFERS - self._receive.posted
        await self._receive.post([(self._receive.posted + n) % _BUFFERS for n in range(spare)])

    async def received(self) -> int:
        """Packets since the guest's start."""
        return await self._receive.used()

    async def last(self) -> bytes:
        """The packet that came last."""
        head = await self._receive.last_head()
        return (await self._device.qtest.read(_PACKETS + head * _PAGE, 128))[_HEADER:]


class MemDriver:
    """Plugs the memory of a virtio-mem device, as its guest's driver."""

    def __init__(self, qemu: Qemu) -> None:
        self._device = Virtio(qemu.qtest, MEM_SLOT, _MEM_MEMORY)

    async def plug(self, plug: Plug) -> None:
        assert plug.address is not None
        (queue,) = await self._device.set_up(1 << 1, [8])  # it leaves alone what is not plugged
        request, answer = _MEM_MEMORY + MIB // 2, _MEM_MEMORY + MIB // 2 + _PAGE
        content = _PLUG_REQUEST.pack(0, 0, 0, 0, plug.address, EXTRA // (2 * MIB), 0, 0, 0)
        await self._device.qtest.write(request, content)
        await queue.describe(0, [(request, len(content), False), (answer, 10, True)])
        await queue.post([0])
        await queue.wait_used(1)
        status = await self._device.qtest.get(answer, 2)
        assert status == 0, f"virtio-mem refuses to plug: {status}"


class BalloonDriver:
    """Gives pages to a balloon."""

    def __init__(self, qemu: Qemu) -> None:
        self._device = Virtio(qemu.qtest, BALLOON_SLOT, _BALLOON_MEMORY)
        self._without = 0

    async def inflate(self, qemu: Qemu) -> None:
        self._without = await _balloon(qemu)
        inflate, _ = await self._device.set_up(0, [8, 8])
        numbers = range(_BALLOONED // _PAGE, _BALLOONED // _PAGE + _BALLOON_PAGES)
        where = _BALLOON_MEMORY + MIB // 2
        await self._device.qtest.write(where, struct.pack(f"<{_BALLOON_PAGES}I", *numbers))
        await inflate.describe(0, [(where, 4 * _BALLOON_PAGES, False)])
        await inflate.post([0])
        await inflate.wait_used(1)
        await self._device.qtest.set(self._device.registers + 4, 4, _BALLOON_PAGES)

    async def check(self, qemu: Qemu) -> None:
        """The pages are in the balloon there, too."""
        taken = self._without - await _balloon(qemu)
        assert taken == _BALLOON_PAGES * _PAGE, taken


async def _balloon(qemu: Qemu) -> int:
    """What the guest has of its memory, bytes."""
    reply = await qemu.monitor.execute("query-balloon")
    assert isinstance(reply, dict)
    return int(reply["actual"])


class Disk:
    """Patterns that are written to a disk on one QEMU and read on the next ones.

    QEMU says what became of them on its standard output, whose rest comes when it ends.

    Args:
        path: where QEMU has the device.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._written = 0
        self._read: dict[Qemu, int] = {}

    async def write(self, qemu: Qemu) -> None:
        """A pattern more."""
        self._written += 1
        await self._do(qemu, "write", self._written)

    async def read(self, qemu: Qemu) -> None:
        """All patterns that were written anywhere."""
        for number in range(1, self._written + 1):
            await self._do(qemu, "read", number)
        self._read[qemu] = self._written

    def check(self, qemu: Qemu, output: str) -> None:
        """Of a QEMU that has ended."""
        assert "verification failed" not in output, output
        done = output.count("read 65536/65536 bytes")
        assert done == self._read.get(qemu, 0), output

    async def _do(self, qemu: Qemu, what: str, number: int) -> None:
        words = f"{what} -P {number} {number * 64}k 64k"
        answer = await commands.human(
            qemu.monitor, f'qemu-io -d {self._path} "{words}"', timeout=60
        )
        assert not answer.strip(), answer


class Peer:
    """Who sends packets to the guest: made before its QEMU."""

    def __init__(self, site: Site, stack: ExitStack, name: str, logging: Logging) -> None:
        self._site = site
        self._stack = stack
        self._name = name
        self.back_end: Receiver | None = None
        self._sender: socket.socket | None = None
        if name == "vhost-user":
            self.back_end = stack.enter_context(Receiver(site.folder / "back-end", logging))

    def connect(self) -> None:
        """Once QEMU runs."""
        if self._name == "socket":
            self._sender = self._stack.enter_context(socket.socket(socket.AF_UNIX))
            self._sender.connect(str(self._site.folder / "net"))
        elif self._name == "tap":
            subprocess.run(
                ["ip", "link", "set", self._site.tap, "up"], check=True, timeout=DEADLINE
            )
            self._sender = self._stack.enter_context(
                socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
            )
            self._sender.bind((self._site.tap, 0))

    async def reaches(self, driver: NetDriver) -> None:
        """Send packets until one has come to the guest."""
        before = await driver.received()
        packet = _packet(self._site.number)

        async def came() -> bool:
            return await self._came(driver, before, packet)

        await until(came, "a packet comes to the guest")

    async def _came(self, driver: NetDriver, before: int, packet: bytes) -> bool:
        if self._sender is None:
            return await driver.received() != before
        head = struct.pack(">I", len(packet)) if self._name == "socket" else b""
        await asyncio.to_thread(self._sender.sendall, head + packet)
        now = await driver.received()
        return now != before and (await driver.last())[: len(packet)] == packet


def _packet(number: int) -> bytes:
    """An Ethernet frame to the guest, of a kind that nobody else sends."""
    own = bytes.fromhex(MAC.replace(":", ""))
    return own + own[:5] + b"\0" + b"\x88\xb5" + bytes([number] * 50)


def tap_name(folder: Path) -> str:
    """A name for a network interface, of 15 characters at most, that no other test takes."""
    return f"qr{zlib.crc32(bytes(folder))}"
