"""A running workload, seen through the file that backs the guest's memory."""

from __future__ import annotations

import asyncio
import mmap
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from types import TracebackType

from qemu_ring.errors import DeadlineError, QemuRingError
from qemu_ring.guest import layout
from qemu_ring.guest.workload import Pattern, Stream, Workload, pack_stream

__all__ = ["VcpuState", "VcpuStatistics", "WorkloadControl", "WorkloadStatistics"]

_POLL_SECONDS = 0.001
_SEQUENCE_WORD = (layout.CONTROL + layout.SEQUENCE_OFFSET) // 4


class VcpuState(IntEnum):
    """What a vCPU of the workload is doing."""

    NOT_STARTED = 0
    RUNNING = 1
    DONE = 2
    IDLE = 3
    BAD_PARAMETERS = 0xBAD


@dataclass(frozen=True, slots=True)
class VcpuStatistics:
    """Counters of one vCPU since the guest's start or reset.

    Args:
        state: what it is doing.
        writes: pages written, repeats counted.
        passes: times its walk came to the end of its span, or cycles of PCI_TOGGLE.
        start_tsc: time stamp counter when the vCPU began, ticks.
        first_write_tsc: the same after its first write, 0 before.
        cursor: pages of the span walked in this pass.
        last_page: page it writes now, or wrote last, by index over all regions.
        writes_by_region: pages written by region name, repeats counted.
    """

    state: VcpuState
    writes: int
    passes: int
    start_tsc: int
    first_write_tsc: int
    cursor: int
    last_page: int
    writes_by_region: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class WorkloadStatistics:
    """Counters of all vCPUs."""

    vcpus: tuple[VcpuStatistics, ...]

    @property
    def writes(self) -> int:
        """Pages written by all vCPUs, repeats counted."""
        return sum(vcpu.writes for vcpu in self.vcpus)

    def writes_to(self, region: str) -> int:
        """Pages written to one region by all vCPUs, repeats counted."""
        return sum(vcpu.writes_by_region[region] for vcpu in self.vcpus)


class WorkloadControl:
    """Reads the statistics, and changes the streams, of a running workload.

    The host writes the control page behind KVM's dirty tracking; each vCPU then
    acknowledges by writing to the same page, so that a migration under way sends it.

    Args:
        fd: the `share=on` file that backs guest-physical address 0.
        workload: what the guest was started with.
        tsc_hz: ticks per second of the guest's time stamp counter.
    """

    def __init__(self, fd: int, workload: Workload, tsc_hz: int) -> None:
        self._memory = mmap.mmap(fd, layout.LOW_MEMORY)
        self._words = memoryview(self._memory).cast("I")
        self._workload = workload
        self._tsc_hz = tsc_hz

    def __enter__(self) -> WorkloadControl:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Unmap the guest's memory."""
        self._words.release()
        self._memory.close()

    @property
    def workload(self) -> Workload:
        """What the guest was started with."""
        return self._workload

    def statistics(self) -> WorkloadStatistics:
        """The counters as they are now; the guest need not be stopped."""
        names = [region.name for region in self._workload.regions]
        vcpus = []
        for index in range(len(self._workload.streams)):
            fields = layout.VCPU_STATISTICS.unpack_from(
                self._memory, layout.STATISTICS + index * layout.PAGE_SIZE
            )
            vcpus.append(
                VcpuStatistics(
                    state=VcpuState(fields[0]),
                    writes=fields[1],
                    passes=fields[2],
                    start_tsc=fields[3],
                    first_write_tsc=fields[4],
                    cursor=fields[5],
                    last_page=fields[6],
                    writes_by_region=dict(zip(names, fields[7:], strict=False)),
                )
            )
        return WorkloadStatistics(tuple(vcpus))

    async def wait_writing(self, *, timeout: float = 60.0) -> WorkloadStatistics:
        """Wait until every vCPU that has something to write has written.

        One that toggles PCI devices must have done one cycle.

        Args:
            timeout: seconds.

        Raises:
            DeadlineError: a vCPU wrote nothing in that time.
            QemuRingError: the firmware refused its parameters.
        """
        deadline = time.monotonic() + timeout
        while True:
            statistics = self.statistics()
            if any(vcpu.state is VcpuState.BAD_PARAMETERS for vcpu in statistics.vcpus):
                raise QemuRingError("the workload firmware refused its parameters")
            silent = [
                str(index)
                for index, stream in enumerate(self._workload.streams)
                if not _has_begun(stream.pattern, statistics.vcpus[index])
            ]
            if not silent:
                return statistics
            if time.monotonic() > deadline:
                raise DeadlineError(
                    f"vCPU {', '.join(silent)} wrote nothing within {timeout:g} s",
                    hint="see the guest's serial output and QEMU's log",
                )
            await asyncio.sleep(_POLL_SECONDS)

    async def wait(
        self, wanted: Callable[[WorkloadStatistics], bool], *, timeout: float, what: str
    ) -> WorkloadStatistics:
        """Wait until the counters are as wanted, and return them.

        Args:
            wanted: given the counters again and again.
            timeout: seconds.
            what: what did not happen, in words, for the error.

        Raises:
            DeadlineError: it did not happen in that time.
        """
        deadline = time.monotonic() + timeout
        while not wanted(statistics := self.statistics()):
            if time.monotonic() > deadline:
                raise DeadlineError(what)
            await asyncio.sleep(_POLL_SECONDS)
        return statistics

    async def wait_through(self, *, timeout: float, what: str) -> None:
        """Wait until each vCPU has looped through all of its span, from now on.

        Args:
            timeout, what: as of `wait`.

        Raises:
            DeadlineError: a vCPU did not in that time.
        """
        # The pass that is under way has begun before.
        enough = [vcpu.passes + 2 for vcpu in self.statistics().vcpus]
        await self.wait(
            lambda now: all(
                vcpu.passes >= passes for vcpu, passes in zip(now.vcpus, enough, strict=True)
            ),
            timeout=timeout,
            what=what,
        )

    async def set_streams(self, streams: Sequence[Stream], *, timeout: float = 60.0) -> None:
        """Change what the vCPUs write, and wait until each has taken it up.

        Counters go on. Zipf streams can be given only at start.

        Args:
            streams: one per vCPU.
            timeout: seconds.

        Raises:
            DeadlineError: a vCPU did not take it up, for instance because it is stopped.
        """
        workload = Workload(self._workload.regions, tuple(streams))
        if len(streams) != len(self._workload.streams):
            raise ValueError("one stream per vCPU")
        if any(stream.pattern is Pattern.ZIPF for stream in streams):
            raise ValueError("Zipf streams can be given only at start")
        deadline = time.monotonic() + timeout
        sequence = self._sequence
        # Odd: the vCPUs wait, and none reads a stream that is half written.
        self._sequence = sequence + 1
        try:
            await self._taken_up(deadline)
            for index, stream in enumerate(streams):
                start = layout.CONTROL + layout.STREAM_OFFSET + index * layout.STREAM.size
                self._memory[start : start + layout.STREAM.size] = pack_stream(stream, self._tsc_hz)
            self._workload = workload
        finally:
            self._sequence = sequence + 2
        await self._taken_up(deadline)

    @property
    def _sequence(self) -> int:
        return self._words[_SEQUENCE_WORD]

    @_sequence.setter
    def _sequence(self, value: int) -> None:
        # One store. `Struct.pack_into` clears the bytes first, and a vCPU that saw the 0
        # would take it for a sequence number and begin its stream once more.
        self._words[_SEQUENCE_WORD] = value & 0xFFFFFFFF

    async def _taken_up(self, deadline: float) -> None:
        """Wait until each vCPU has acknowledged the sequence number that is set."""
        sequence, vcpus = self._sequence, range(len(self._workload.streams))
        while any(self._acknowledged(index) != sequence for index in vcpus):
            if time.monotonic() > deadline:
                raise DeadlineError("the vCPUs did not take up new streams in time")
            await asyncio.sleep(_POLL_SECONDS)

    def _acknowledged(self, vcpu: int) -> int:
        offset = layout.CONTROL + layout.ACK_OFFSET + vcpu * layout.ACK.size
        (sequence,) = layout.ACK.unpack_from(self._memory, offset)
        return int(sequence)


def _has_begun(pattern: Pattern, vcpu: VcpuStatistics) -> bool:
    """Whether a vCPU has done some of what it was started with."""
    if pattern is Pattern.IDLE:
        return vcpu.state is VcpuState.IDLE
    return (vcpu.writes if pattern.writes else vcpu.passes) > 0
