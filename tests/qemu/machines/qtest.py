"""A guest's driver for a virtio device, played from outside by QEMU's qtest protocol.

Our firmware has no drivers. So the test does what one would do, in the guest's memory and at the
device's registers, while the guest runs: the device works with queues in the guest's memory, whose
state is migrated.
"""

from __future__ import annotations

import asyncio
import struct
from pathlib import Path

from tests.waiting import DEADLINE, until

_VENDOR = 9  # the kind of PCI capability that says where virtio's registers are
_COMMON, _NOTIFY, _DEVICE = 1, 2, 4
_VERSION_1 = 32
_STATUS = 0x14
_QUEUE_BYTES = 0x3000


class Qtest:
    """A connection to one QEMU's `-qtest` socket."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer

    @classmethod
    async def connect(cls, path: Path) -> Qtest:
        return cls(*await asyncio.open_unix_connection(path))

    async def close(self) -> None:
        self._writer.close()
        await self._writer.wait_closed()

    async def _say(self, words: str) -> str:
        self._writer.write(f"{words}\n".encode())
        answer = (await asyncio.wait_for(self._reader.readline(), DEADLINE)).decode().strip()
        assert answer.startswith("OK"), (words, answer)
        return answer.removeprefix("OK").strip()

    async def port_in(self, port: int) -> int:
        return int(await self._say(f"inl {port:#x}"), 0)

    async def port_out(self, port: int, value: int) -> None:
        await self._say(f"outl {port:#x} {value:#x}")

    async def get(self, address: int, size: int) -> int:
        """A register of 1, 2, 4 or 8 bytes."""
        return int(await self._say(f"read{_SUFFIX[size]} {address:#x}"), 0)

    async def set(self, address: int, size: int, value: int) -> None:
        await self._say(f"write{_SUFFIX[size]} {address:#x} {value:#x}")

    async def read(self, address: int, size: int) -> bytes:
        return bytes.fromhex((await self._say(f"read {address:#x} {size:#x}")).removeprefix("0x"))

    async def write(self, address: int, content: bytes) -> None:
        await self._say(f"write {address:#x} {len(content):#x} 0x{content.hex()}")


_SUFFIX = {1: "b", 2: "w", 4: "l", 8: "q"}


class Queue:
    """A virtqueue of a device, in memory of the guest."""

    def __init__(self, device: Virtio, number: int, size: int, memory: int) -> None:
        self._device, self._number, self._size = device, number, size
        self._table, self._available, self._used = memory, memory + 0x1000, memory + 0x2000
        self._posted = 0
        self.notify = 0

    async def set_up(self) -> None:
        device, common = self._device, self._device.common
        await device.qtest.set(common + 0x16, 2, self._number)
        await device.qtest.set(common + 0x18, 2, self._size)
        for offset, address in ((0x20, self._table), (0x28, self._available), (0x30, self._used)):
            await device.qtest.set(common + offset, 4, address)
            await device.qtest.set(common + offset + 4, 4, 0)
        self.notify = await device.qtest.get(common + 0x1E, 2)
        await device.qtest.set(common + 0x1C, 2, 1)

    async def describe(self, index: int, buffers: list[tuple[int, int, bool]]) -> None:
        """Write a chain from descriptor `index` on: address, length, whether the device writes."""
        chain = b""
        for number, (address, length, device_writes) in enumerate(buffers):
            more = number + 1 < len(buffers)
            flags = (1 if more else 0) | (2 if device_writes else 0)
            chain += struct.pack("<QIHH", address, length, flags, index + number + 1 if more else 0)
        await self._device.qtest.write(self._table + 16 * index, chain)

    async def post(self, heads: list[int]) -> None:
        """Make chains available, by their first descriptors, and tell the device."""
        for head in heads:
            slot = self._available + 4 + 2 * (self._posted % self._size)
            await self._device.qtest.set(slot, 2, head)
            self._posted += 1
        await self._device.qtest.set(self._available + 2, 2, self._posted & 0xFFFF)
        await self._device.notify(self)

    async def used(self) -> int:
        """How many the device has given back."""
        return await self._device.qtest.get(self._used + 2, 2)

    @property
    def posted(self) -> int:
        return self._posted

    async def wait_used(self, count: int) -> None:
        async def enough() -> bool:
            return await self.used() >= count

        await until(enough, "the device gives back what it was given")

    async def last_head(self) -> int:
        """The chain that was given back last."""
        at = (await self.used() - 1) % self._size
        return await self._device.qtest.get(self._used + 4 + 8 * at, 4)


class Virtio:
    """A virtio device on the PCI bus, whose driver this is.

    Args:
        slot: its place on bus 0.
        memory: guest-physical address of some pages for its queues.
    """

    def __init__(self, qtest: Qtest, slot: int, memory: int) -> None:
        self.qtest = qtest
        self.memory = memory
        self._slot = slot
        self._bar = 0xE0000000 + slot * 0x100000
        self._notify = self._notify_step = self.common = self.registers = 0

    async def set_up(self, features: int, queues: list[int]) -> list[Queue]:
        """Find its registers, agree on features, set up queues of these sizes."""
        await self._find()
        await self.qtest.set(self.common + _STATUS, 1, 0)
        await self.qtest.set(self.common + _STATUS, 1, 3)  # noticed, and there is a driver
        wanted = features | 1 << _VERSION_1
        offered = 0
        for half in (0, 1):
            await self.qtest.set(self.common, 4, half)
            offered |= await self.qtest.get(self.common + 4, 4) << 32 * half
        for half in (0, 1):
            await self.qtest.set(self.common + 8, 4, half)
            await self.qtest.set(self.common + 0xC, 4, (wanted & offered) >> 32 * half & 0xFFFFFFFF)
        await self.qtest.set(self.common + _STATUS, 1, 11)
        assert await self.qtest.get(self.common + _STATUS, 1) == 11, "it refuses the features"
        found = []
        for number, size in enumerate(queues):
            queue = Queue(self, number, size, self.memory + number * _QUEUE_BYTES)
            await queue.set_up()
            found.append(queue)
        await self.qtest.set(self.common + _STATUS, 1, 15)
        return found

    async def notify(self, queue: Queue) -> None:
        await self.qtest.set(self._notify + queue.notify * self._notify_step, 2, queue._number)

    async def _find(self) -> None:
        """Give it an address, and read where its registers are."""
        registers = {}
        at = await self._config(0x34) & 0xFF
        while at:
            head = await self._config(at)
            if head & 0xFF == _VENDOR:
                offset, step = await self._config(at + 8), await self._config(at + 16)
                registers[head >> 24] = (await self._config(at + 4) & 0xFF, offset, step)
            at = head >> 8 & 0xFF
        bar = registers[_COMMON][0]
        await self._set_config(0x10 + 4 * bar, self._bar)
        await self._set_config(0x14 + 4 * bar, 0)
        await self._set_config(0x04, 0x6)  # memory, and be a master on the bus
        self.common = self._bar + registers[_COMMON][1]
        self._notify = self._bar + registers[_NOTIFY][1]
        self._notify_step = registers[_NOTIFY][2]
        if _DEVICE in registers:
            self.registers = self._bar + registers[_DEVICE][1]

    async def _config(self, register: int) -> int:
        await self.qtest.port_out(0xCF8, 1 << 31 | self._slot << 11 | register & 0xFC)
        return await self.qtest.port_in(0xCFC) >> 8 * (register & 3)

    async def _set_config(self, register: int, value: int) -> None:
        await self.qtest.port_out(0xCF8, 1 << 31 | self._slot << 11 | register)
        await self.qtest.port_out(0xCFC, value)
