"""Guests that write at known rates, on the distribution's QEMU and on the patched one."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import pytest

from qemu_ring._compat import timeout
from qemu_ring.guest import Pattern, Region, Stream, Workload, WorkloadControl, image_bytes
from qemu_ring.machine import (
    Accelerator,
    Machine,
    MachineDescription,
    MemoryBackend,
    UnnamedFile,
    probe_kvm,
)
from qemu_ring.qmp import Monitor
from qemu_ring.qmp.dirty import query_dirty_rate
from tests.conftest import BUILD_SECONDS
from tests.waiting import DEADLINE

__all__ = ["MIB", "StartWriter", "Writer", "Written", "any_qemu", "start_writer"]

T = TypeVar("T")

MIB = 1 << 20
PAGE = 4096
TCG_TSC_HZ = 1_000_000_000


@pytest.fixture(
    params=[
        "distribution",
        pytest.param(
            "patched", marks=(pytest.mark.build, pytest.mark.timeout(BUILD_SECONDS + 120))
        ),
    ]
)
def any_qemu(request: pytest.FixtureRequest) -> Path:
    """The distribution's QEMU, then the patched one."""
    name = "qemu_path" if request.param == "distribution" else "patched_qemu"
    path = request.getfixturevalue(name)
    assert isinstance(path, Path)
    return path


@dataclass
class Written:
    """What the vCPUs of a guest wrote in some time.

    Args:
        samples: when, in seconds, and how many pages each vCPU had written then.
    """

    samples: list[tuple[float, list[int]]]

    @property
    def mean(self) -> list[float]:
        """Of each vCPU, in bytes/s."""
        (start, before), (end, after) = self.samples[0], self.samples[-1]
        return [
            (now - then) * PAGE / (end - start) for then, now in zip(before, after, strict=True)
        ]

    def allows(self, measured: int, seconds: float, vcpus: Sequence[int]) -> bool:
        """Whether that was the rate of these vCPUs together, for so long, at some time in it.

        Within a factor of 1.5, and the MiB/s that QEMU rounds off for each.
        """
        pages = [(when, sum(count[vcpu] for vcpu in vcpus)) for when, count in self.samples]
        rates = [
            (after - before) * PAGE / (end - start)
            for start, before in pages
            for end, after in pages
            if end >= start + seconds
        ]
        return min(rates) / 1.5 - MIB * len(vcpus) < measured < max(rates) * 1.5


@dataclass
class Writer:
    """A running guest.

    Args:
        monitor: its QMP session.
        socket: a second monitor's.
        control: of its workload.
        streams: what its vCPUs write.
    """

    monitor: Monitor
    socket: Path
    control: WorkloadControl
    streams: tuple[Stream, ...]

    async def during(self, work: Awaitable[T]) -> tuple[T, Written]:
        """Await `work`; also returns what was written meanwhile."""
        written = Written([])

        async def sample() -> None:
            while True:
                self._sample(written)
                await asyncio.sleep(0.02)

        sampling = asyncio.create_task(sample())
        try:
            result = await work
        finally:
            sampling.cancel()
            await asyncio.wait({sampling})
        self._sample(written)
        return result, written

    async def until(self, status: str) -> None:
        """Wait until a measurement is under way, or has ended."""
        async with timeout(DEADLINE):
            while True:
                if (await query_dirty_rate(self.monitor)).status == status:
                    return
                await asyncio.sleep(0.005)

    def _sample(self, written: Written) -> None:
        pages = [vcpu.writes for vcpu in self.control.statistics().vcpus]
        written.samples.append((time.monotonic(), pages))


StartWriter = Callable[..., AbstractAsyncContextManager[Writer]]


@pytest.fixture
def start_writer(any_qemu: Path, tmp_path: Path) -> StartWriter:
    """Start a guest each of whose vCPUs loops over memory of its own.

    A rate is in pages/s, 0 for a vCPU that writes nothing, None for one that writes as fast
    as it can.
    """

    @asynccontextmanager
    async def start(
        accelerator: Accelerator, rates: Sequence[float | None], *, vcpu_mib: int = 64
    ) -> AsyncIterator[Writer]:
        region = Region("memory", 16 * MIB, len(rates) * vcpu_mib * MIB)
        parts = Workload((region,), (Stream(),)).span(region.name).split(len(rates))
        streams = tuple(
            Stream() if rate == 0 else Stream(Pattern.LOOP, part, pages_per_second=rate)
            for rate, part in zip(rates, parts, strict=True)
        )
        workload = Workload((region,), streams)
        is_kvm = accelerator.name == "kvm"
        tsc_hz = probe_kvm().tsc_khz * 1000 if is_kvm else TCG_TSC_HZ
        socket = tmp_path / "second.qmp"
        with UnnamedFile("ram", region.size + 16 * MIB) as ram:
            description = MachineDescription(
                accelerator=accelerator,
                memory=MemoryBackend("ram", ram),
                vcpus=len(rates),
                firmware=image_bytes(),
                fw_cfg=workload.fw_cfg(tsc_hz),
                extra=("-qmp", f"unix:{socket},server=on,wait=off"),
            )
            async with await Machine.start(any_qemu, description) as machine:
                with WorkloadControl(ram.fd, workload, tsc_hz) as control:
                    await control.wait_writing()
                    yield Writer(machine.monitor, socket, control, streams)

    return start
