"""A guest that writes, and the twin it is to be migrated to."""

from __future__ import annotations

import subprocess
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from qemu_ring.dirty import Tracking
from qemu_ring.guest import (
    PAGE_SIZE,
    Pattern,
    Region,
    Stream,
    Workload,
    WorkloadControl,
    image_bytes,
    read_tokens,
)
from qemu_ring.machine import (
    Machine,
    MachineDescription,
    MemoryBackend,
    UnnamedFile,
    probe_kvm,
    probe_qemu,
)
from qemu_ring.migration import GuestDowntime, firmware_writes
from qemu_ring.qmp import commands
from qemu_ring.verify import Block
from tests.kvm.migration.qemus import Qemus
from tests.waiting import DEADLINE, until

MIB = 1 << 20
RAM = 40 * MIB
REGION = Region("ram", 8 * MIB, 32 * MIB)


@dataclass
class Pair:
    """A running source and a destination that waits."""

    binary: Path
    source: Machine
    destination: Machine
    control: WorkloadControl
    memory: UnnamedFile
    destination_memory: UnnamedFile
    vcpus: int

    @property
    def blocks(self) -> list[Block]:
        return [Block("ram", self.memory.fd, self.destination_memory.fd, RAM)]

    def guest_downtime(self) -> GuestDowntime:
        return GuestDowntime(
            firmware_writes(self.memory.fd, self.vcpus),
            firmware_writes(self.destination_memory.fd, self.vcpus),
        )

    async def assert_source_goes_on(self) -> None:
        """The guest writes at the source, and could be migrated again."""
        assert (await commands.query_status(self.source.monitor)).running
        before = self.control.statistics().writes
        await self.control.wait(lambda now: now.writes > before, timeout=DEADLINE, what="no writes")
        assert not (await commands.query_migrate(self.source.monitor)).is_active

    @property
    def first_page(self) -> int:
        """Where the memory begins that the guest loops over."""
        return REGION.address // PAGE_SIZE

    def writes_at_destination(self) -> int:
        return firmware_writes(self.destination_memory.fd, self.vcpus)()

    def newest_token_at_destination(self) -> int:
        """The highest count in any page that the (one) vCPU wrote."""
        tokens = read_tokens(self.destination_memory.fd, RAM)[self.first_page :]
        return max(tokens) & ((1 << 56) - 1)

    async def wait_writing_at_destination(self) -> None:
        """The guest lives there."""
        read = firmware_writes(self.destination_memory.fd, self.vcpus)
        start = read()
        await until(lambda: read() != start, "the guest writes at the destination")


StartPair = Callable[..., AbstractAsyncContextManager[Pair]]


def workload(vcpus: int, pages_per_second: float | None, region: Region = REGION) -> Workload:
    """Each vCPU loops over its part, and never stops."""
    spans = Workload((region,), (Stream(),) * vcpus).span("ram").split(vcpus)
    rate = None if pages_per_second is None else pages_per_second / vcpus
    streams = (Stream(Pattern.LOOP, span, pages_per_second=rate) for span in spans)
    return Workload((region,), tuple(streams))


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CA, and certificates of a client and of a server that is called ring.test."""
    folder = tmp_path_factory.mktemp("tls")

    def openssl(*arguments: str) -> None:
        command = ["openssl", *arguments]
        subprocess.run(command, cwd=folder, check=True, capture_output=True, timeout=60)

    new = ("req", "-newkey", "rsa:2048", "-nodes")
    ca = ("-x509", "-days", "2", "-subj", "/CN=ring CA", "-keyout", "ca-key.pem")
    usage = ("-addext", "keyUsage=critical,keyCertSign,cRLSign")
    openssl(*new, *ca, *usage, "-out", "ca-cert.pem")
    for name in ("client", "server"):
        request = ("-keyout", f"{name}-key.pem", "-out", f"{name}.csr")
        openssl(*new, "-subj", f"/CN={name}", *request)
        (folder / "extensions").write_text("subjectAltName=DNS:ring.test\n")
        signing = ("-CA", "ca-cert.pem", "-CAkey", "ca-key.pem", "-CAcreateserial", "-days", "2")
        files = ("-in", f"{name}.csr", "-out", f"{name}-cert.pem", "-extfile", "extensions")
        openssl("x509", "-req", *files, *signing)
    return folder


@pytest.fixture
def start_pair(qemu_path: Path) -> StartPair:
    """Start both sides; by default by bitmap, one vCPU, a writer that precopy can follow."""

    @asynccontextmanager
    async def start(
        binary: Path = qemu_path,
        *,
        tracking: Tracking = Tracking(),  # noqa: B008 - immutable
        vcpus: int = 1,
        pages_per_second: float | None = 4000,
        machine: str = "pc",
        extra: tuple[str, ...] = (),
    ) -> AsyncIterator[Pair]:
        tsc_hz = probe_kvm().tsc_khz * 1000
        load = workload(vcpus, pages_per_second)
        accelerator = tracking.accelerator(await probe_qemu(binary))
        async with AsyncExitStack() as stack:
            memory = [
                stack.enter_context(UnnamedFile(name, RAM)) for name in ("ram", "ram-destination")
            ]
            description = MachineDescription(
                accelerator=accelerator,
                machine=machine,
                memory=MemoryBackend("ram", memory[0]),
                vcpus=vcpus,
                firmware=image_bytes(),
                fw_cfg=load.fw_cfg(tsc_hz),
                extra=extra,
            )
            twin = replace(
                description, memory=MemoryBackend("ram", memory[1]), incoming="defer", paused=True
            )
            source = await stack.enter_async_context(
                await Machine.start(binary, description, name="source")
            )
            destination = await stack.enter_async_context(
                await Machine.start(binary, twin, name="destination")
            )
            control = stack.enter_context(WorkloadControl(memory[0].fd, load, tsc_hz))
            await control.wait_writing()
            yield Pair(binary, source, destination, control, memory[0], memory[1], vcpus)

    return start


@pytest.fixture(params=["distribution", "patched"])
def binary(request: pytest.FixtureRequest, qemu_path: Path) -> Path:
    """The distribution's QEMU, and the patched one."""
    if request.param == "distribution":
        return qemu_path
    found: Path = request.getfixturevalue("patched_qemu")
    return found


@pytest.fixture
def qemus(qemu_path: Path, tmp_path: Path) -> Iterator[Qemus]:
    started = Qemus(tmp_path, qemu_path)
    yield started
    started.stop()
