"""The workload firmware in a real QEMU: it writes what it is told, and counts what it writes."""

from __future__ import annotations

import asyncio
import mmap
import re
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractAsyncContextManager

import pytest

from qemu_ring.errors import DeadlineError, QemuRingError
from qemu_ring.guest import (
    Pattern,
    Region,
    Span,
    Stream,
    VcpuState,
    Workload,
    WorkloadControl,
    WorkloadStatistics,
    read_tokens,
)
from qemu_ring.guest.zipf import bucket_table, scatter_multiplier
from qemu_ring.machine import Accelerator, Machine, MemoryBackend, UnnamedFile
from qemu_ring.memslot import PciAddress, PciSlots, SlotDevice
from qemu_ring.qmp import commands
from tests.waiting import DEADLINE

MIB = 1 << 20
REGIONS = (Region("a", 16 * MIB, 1 * MIB), Region("b", 32 * MIB, 2 * MIB))
A, B = Span(0, 256), Span(256, 512)

MASK = (1 << 64) - 1

pytestmark = pytest.mark.qemu

StartGuest = Callable[..., AbstractAsyncContextManager]  # type: ignore[type-arg]


async def until(
    read: Callable[[], WorkloadStatistics],
    wanted: Callable[[WorkloadStatistics], bool],
) -> WorkloadStatistics:
    deadline = time.monotonic() + DEADLINE
    while not wanted(statistics := read()):
        assert time.monotonic() < deadline, statistics
        await asyncio.sleep(0.002)
    return statistics


def tokens_of(memory_tokens: list[int], region: Region) -> list[int]:
    first = region.address // 4096
    return memory_tokens[first : first + region.pages]


@pytest.mark.parametrize("machine", ["pc", "q35"])
async def test_once_writes_each_page_of_its_span_once(
    start_guest: StartGuest, machine: str
) -> None:
    workload = Workload(REGIONS, (Stream(Pattern.ONCE, Span(200, 100)),))
    async with start_guest(workload, machine=machine) as guest:
        statistics = await until(
            guest.control.statistics, lambda s: s.vcpus[0].state is VcpuState.DONE
        )
        await commands.stop(guest.machine.monitor)
        vcpu = statistics.vcpus[0]
        assert (vcpu.writes, vcpu.passes, vcpu.cursor, vcpu.last_page) == (100, 1, 100, 299)
        assert vcpu.writes_by_region == {"a": 56, "b": 44}
        assert 0 < vcpu.start_tsc < vcpu.first_write_tsc
        tokens = read_tokens(guest.memory.fd, guest.memory.size)
        a, b = (tokens_of(tokens, region) for region in REGIONS)
        # The token counts the writes of vCPU 0, in order; nothing else was written.
        assert a == [0] * 200 + list(range(1, 57))
        assert b == list(range(57, 101)) + [0] * 468
        assert "qemu-ring workload: running" in guest.machine.text("serial")


@pytest.mark.kvm
async def test_end_of_a_walk_is_told_when_its_last_page_is_written(start_guest: StartGuest) -> None:
    """The last page is fresh each time, so that the write to it takes long."""
    region = Region("fresh", 16 * MIB, 32 * MIB)
    pages = range(0, region.pages, 32)
    async with start_guest(Workload((region,), (Stream(),)), accelerator=Accelerator("kvm")) as g:
        await g.control.wait_writing()
        with mmap.mmap(g.memory.fd, g.memory.size) as memory:
            for walk, page in enumerate(pages, 1):
                await g.control.set_streams(
                    (Stream(Pattern.ONCE, Span(page, 1), pages_per_second=1000),)
                )
                deadline = time.monotonic() + DEADLINE
                while g.control.statistics().vcpus[0].passes < walk:  # no wait: look at once
                    assert time.monotonic() < deadline
                start = region.address + page * 4096
                assert int.from_bytes(memory[start : start + 8], "little") == walk


@pytest.mark.kvm
async def test_new_stream_is_begun_once(start_guest: StartGuest) -> None:
    """A vCPU must see no sequence number but those that were set, not one half written."""
    region = Region("r", 16 * MIB, MIB)
    async with start_guest(Workload((region,), (Stream(),)), accelerator=Accelerator("kvm")) as g:
        await g.control.wait_writing()
        for change in range(1, 10_001):
            await g.control.set_streams((Stream(Pattern.ONCE, Span(0, 1)),))
            await g.control.wait(
                lambda s, change=change: s.vcpus[0].passes >= change,
                timeout=DEADLINE,
                what="no write",
            )
            assert g.control.statistics().vcpus[0].writes == change


async def test_four_vcpus_write_their_own_parts_at_once(start_guest: StartGuest) -> None:
    streams = tuple(Stream(Pattern.LOOP, part) for part in B.split(4))
    async with start_guest(Workload(REGIONS, streams)) as guest:
        statistics = await until(
            guest.control.statistics, lambda s: all(vcpu.passes >= 3 for vcpu in s.vcpus)
        )
        await commands.stop(guest.machine.monitor)
        assert statistics.writes_to("a") == 0
        tokens = tokens_of(read_tokens(guest.memory.fd, guest.memory.size), REGIONS[1])
        assert [token >> 56 for token in tokens] == [0] * 128 + [1] * 128 + [2] * 128 + [3] * 128


async def test_random_covers_the_span_evenly(start_guest: StartGuest) -> None:
    workload = Workload(REGIONS, (Stream(Pattern.RANDOM, A, seed=42),))
    async with start_guest(workload) as guest:
        await until(guest.control.statistics, lambda s: s.writes >= 256 * 40)
        await commands.stop(guest.machine.monitor)
        assert guest.control.statistics().writes_to("b") == 0
        assert 0 not in tokens_of(read_tokens(guest.memory.fd, guest.memory.size), REGIONS[0])


class Draws:
    """The firmware's xorshift64*, in Python."""

    def __init__(self, seed: int) -> None:
        self._state = seed

    def below(self, limit: int) -> int:
        self._state ^= self._state >> 12
        self._state = (self._state ^ self._state << 25) & MASK
        self._state ^= self._state >> 27
        return ((self._state * 0x2545F4914F6CDD1D & MASK) * limit) >> 64


def zipf_page(draws: Draws, table: list[int], pages: int) -> int:
    bucket = draws.below(len(table) - 1)
    low, high = table[bucket : bucket + 2]
    return (low + draws.below(high - low)) * scatter_multiplier(pages) % pages


@pytest.mark.parametrize("seed", [1, 2**64 - 1])
@pytest.mark.parametrize("pattern", [Pattern.RANDOM, Pattern.ZIPF])
async def test_random_patterns_are_exactly_their_models(
    start_guest: StartGuest, pattern: Pattern, seed: int
) -> None:
    """Each page holds the number of its last write, so all writes can be replayed."""
    workload = Workload(REGIONS, (Stream(pattern, B, seed=seed, skew=1.2),))
    async with start_guest(workload) as guest:
        await until(guest.control.statistics, lambda s: s.writes >= 500)
        await commands.stop(guest.machine.monitor)
        writes = guest.control.statistics().writes
        found = tokens_of(read_tokens(guest.memory.fd, guest.memory.size), REGIONS[1])
    draws, table = Draws(seed), bucket_table(B.pages, 1.2, 1024)
    expected = [0] * B.pages
    models = []
    # Stopped between a write and its count, the guest is one write ahead.
    for count in range(1, writes + 2):
        if count == writes + 1:
            models.append(expected.copy())
        random = pattern is Pattern.RANDOM
        page = draws.below(B.pages) if random else zipf_page(draws, table, B.pages)
        expected[page] = count
    assert found in (*models, expected)


async def test_hot_set_and_cold_walk_take_turns(start_guest: StartGuest) -> None:
    stream = Stream(Pattern.HOT_COLD, B, hot=Span(0, 4), hot_run=2, cold_run=3, cold_once=True)
    async with start_guest(Workload(REGIONS, (stream,))) as guest:
        statistics = await until(
            guest.control.statistics, lambda s: s.vcpus[0].passes == 1 and s.writes > 2000
        )
        assert statistics.writes_to("b") == 512
        tokens = tokens_of(read_tokens(guest.memory.fd, guest.memory.size), REGIONS[1])
        # hot hot cold cold cold hot hot ...: cold writes are numbers 3, 4, 5, 8, 9, 10, ...
        assert tokens[:7] == [3, 4, 5, 8, 9, 10, 13]
        a = tokens_of(read_tokens(guest.memory.fd, guest.memory.size), REGIONS[0])
        assert all(a[:4])
        assert not any(a[4:])


async def test_streams_change_while_running_and_after_a_reset(start_guest: StartGuest) -> None:
    workload = Workload(REGIONS, (Stream(Pattern.LOOP, A), Stream()))
    async with start_guest(workload) as guest:
        first = await guest.control.wait_writing()
        assert first.vcpus[1].state is VcpuState.IDLE
        await guest.control.set_streams((Stream(), Stream(Pattern.ONCE, B)))
        statistics = await until(
            guest.control.statistics, lambda s: s.vcpus[1].state is VcpuState.DONE
        )
        assert statistics.vcpus[0].state is VcpuState.IDLE
        assert statistics.vcpus[1].writes_by_region == {"a": 0, "b": 512}
        # A reset reads the parameters from fw_cfg again: vCPU 0 writes, vCPU 1 rests.
        await guest.machine.monitor.execute("system_reset")
        await until(
            guest.control.statistics,
            lambda s: s.vcpus[0].writes > 0 and s.vcpus[1].state is VcpuState.IDLE,
        )


@pytest.fixture
def pci_devices() -> Iterator[list[SlotDevice]]:
    with UnnamedFile("x", MIB) as x, UnnamedFile("y", MIB) as y:
        yield [
            SlotDevice(MemoryBackend("x", x), PciAddress(5)),
            SlotDevice(MemoryBackend("y", y), PciAddress(7)),
        ]


def toggling(devices: list[SlotDevice], rest_seconds: float = 0.0) -> Stream:
    registers = tuple(device.pci.register(0x04) for device in devices)
    return Stream(Pattern.PCI_TOGGLE, pci_commands=registers, rest_seconds=rest_seconds)


def command_writes(machine: Machine) -> list[tuple[int, int]]:
    """Device number and value of each write to a COMMAND register so far, as QEMU traced them."""
    found = re.findall(
        r"pci_cfg_write ivshmem-plain (?:00:)?(\d+)\S+ @0x4 <- (0x\d+)", machine.text("log")
    )
    return [(int(device, 16), int(value, 16)) for device, value in found]


async def passed(control: WorkloadControl, cycles: int) -> None:
    await control.wait(
        lambda now: now.vcpus[0].passes >= cycles,
        timeout=DEADLINE,
        what="the guest does not toggle",
    )


async def where(machine: Machine) -> list[int]:
    """Where the devices' memory is, by QEMU's account."""
    return [
        region.address
        for bus in await commands.query_pci(machine.monitor)
        for device in bus.devices
        for region in device.regions
        if region.bar == 2
    ]


@pytest.mark.parametrize("machine", ["pc", "q35"])
async def test_pci_devices_are_turned_off_and_on_in_whole_cycles(
    start_guest: StartGuest, pci_devices: list[SlotDevice], machine: str
) -> None:
    workload = Workload(REGIONS, (Stream(), Stream(Pattern.LOOP, A)))
    start = start_guest(workload, machine=machine, devices=pci_devices, trace=("pci_cfg_write",))
    async with start as guest:
        slots = PciSlots(guest.machine.monitor, pci_devices)
        await slots.add("x", 1 << 30)
        await slots.add("y", 2 << 30)
        skip = len(command_writes(guest.machine))
        cycle = [(5, 0), (7, 0), (5, 2), (7, 2)]
        for cycles in (1, 10, 20, 30):
            await guest.control.set_streams((toggling(pci_devices), Stream(Pattern.LOOP, A)))
            await passed(guest.control, cycles)
            await guest.control.set_streams((Stream(), Stream(Pattern.LOOP, A)))
            vcpu = guest.control.statistics().vcpus[0]
            assert (vcpu.state, vcpu.writes) == (VcpuState.IDLE, 0)
            assert command_writes(guest.machine)[skip:] == cycle * vcpu.passes
            assert await where(guest.machine) == [1 << 30, 2 << 30]


async def test_pci_toggle_rests_between_cycles_and_ends_its_rest_for_new_streams(
    start_guest: StartGuest, pci_devices: list[SlotDevice]
) -> None:
    workload = Workload(REGIONS, (toggling(pci_devices, 600), Stream(Pattern.LOOP, A)))
    async with start_guest(workload, devices=pci_devices) as guest:
        first = await guest.control.wait_writing()
        assert first.vcpus[0].state is VcpuState.RUNNING
        await until(guest.control.statistics, lambda s: s.vcpus[1].passes >= 1000)
        assert guest.control.statistics().vcpus[0].passes == 1
        await guest.control.set_streams((toggling(pci_devices, 0.001), Stream()))
        await passed(guest.control, 3)


async def test_stopped_guest_cannot_take_up_new_streams(start_guest: StartGuest) -> None:
    async with start_guest(Workload(REGIONS, (Stream(Pattern.LOOP, A),))) as guest:
        await guest.control.wait_writing()
        await commands.stop(guest.machine.monitor)
        with pytest.raises(DeadlineError, match="did not take up new streams in time"):
            await guest.control.set_streams((Stream(),), timeout=0.2)


async def test_parameters_of_another_version_are_refused(
    start_guest: StartGuest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("qemu_ring.guest.layout.VERSION", 2)
    async with start_guest(Workload(REGIONS, (Stream(Pattern.LOOP, A),))) as guest:
        with pytest.raises(QemuRingError, match="refused its parameters"):
            await guest.control.wait_writing()
        assert "bad parameters" in guest.machine.text("serial")
