"""A real Linux guest: it boots, it counts, it is migrated, and it notices lost memory."""

from __future__ import annotations

import mmap
import struct
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest

from qemu_ring.guest.linux import LinuxReport, read_reports
from qemu_ring.guestfile import GuestDescription, RunningGuest, parse_guest, start_guest
from qemu_ring.migration import HeldPrecopy, Pace
from qemu_ring.qmp import commands
from qemu_ring.verify import Block, compare
from tests import waiting

pytestmark = [pytest.mark.qemu, pytest.mark.usefixtures("linux_files")]

MIB = 1 << 20
PAGE = 4096


def described(
    pattern: str = "loop", vcpus: int = 1, pages_per_second: int = 20000
) -> GuestDescription:
    return parse_guest(f"""
memory: 160 MiB
accelerator: tcg
vcpus: {vcpus}
linux:
  workload:
    size: 32 MiB
    pattern: {pattern}
    pages-per-second: {pages_per_second}
    report-seconds: 0.1
""")


def reports(guest: RunningGuest) -> list[LinuxReport]:
    return read_reports(guest.machine.text("serial"))


async def until(
    guest: RunningGuest, wanted: Callable[[list[LinuxReport]], bool]
) -> list[LinuxReport]:
    await waiting.until(lambda: wanted(reports(guest)), lambda: reports(guest)[-3:])
    return reports(guest)


def rises(found: list[LinuxReport]) -> bool:
    return all(
        a.writes < b.writes and a.passes <= b.passes and a.milliseconds < b.milliseconds
        for a, b in pairwise(found)
    )


async def test_two_cpus_write_at_their_rate(qemu_path: Path) -> None:
    async with start_guest(described("random", 2, 2000), qemu_path) as guest:
        await guest.wait_up()
        assert "running cpus=2 pages=8192" in guest.machine.text("serial")
        found = await until(guest, lambda f: len(f) > 10)
        assert rises(found)
        assert found[-1].stale == 0
        rate = found[-1].writes / found[-1].milliseconds * 1000
        assert 500 < rate < 2500  # slower where the host is busy, never faster


async def test_migrated_linux_counts_on_and_has_all_its_memory(patched_qemu: Path) -> None:
    # Not by a QEMU older than 9.0: under TCG those lose pages in every migration.
    guest = described()
    async with (
        start_guest(guest, patched_qemu, name="source") as source,
        start_guest(
            guest, patched_qemu, name="destination", incoming="defer", paused=True
        ) as destination,
    ):
        await source.wait_up()
        await until(source, lambda f: f[-1].passes >= 1)
        async with HeldPrecopy(source.machine, destination.machine, Pace(held=4 * MIB)) as held:
            await held.hold()
            before = len(reports(source))
            await until(source, lambda f: len(f) >= before + 3)  # it writes while it is sent
            await held.finish()
        fds = (source.files["ram"].fd, destination.files["ram"].fd)
        comparison = await compare([Block("ram", *fds, guest.memory)])
        assert comparison.equal
        assert comparison.bytes_read > 32 * MIB
        sent = reports(source)
        await commands.cont(destination.machine.monitor)
        # Every page that was written before is compared by the guest in one more pass.
        passes = sent[-1].passes
        arrived = await until(destination, lambda f: bool(f) and f[-1].passes >= passes + 2)
        assert reports(source) == sent
        assert rises([*sent, *arrived])
        assert arrived[-1].stale == 0


async def test_the_guest_notices_one_older_page(qemu_path: Path) -> None:
    """What a lost dirty bit does, done by hand."""
    async with start_guest(described(), qemu_path) as guest:
        await guest.wait_up()
        await until(guest, lambda f: f[-1].passes >= 1)
        await commands.stop(guest.machine.monitor)
        assert reports(guest)[-1].stale == 0
        with mmap.mmap(guest.files["ram"].fd, guest.description.memory) as memory:
            page = struct.pack("<Q", 1234)
            found = [
                at
                for at in range(MIB, len(memory), PAGE)
                if memory[at : at + 8] == page and not any(memory[at + 16 : at + PAGE])
            ]
            assert len(found) == 1
            (writes,) = struct.unpack_from("<Q", memory, found[0] + 8)
            assert writes >= 1
            struct.pack_into("<Q", memory, found[0] + 8, writes - 1)
        await commands.cont(guest.machine.monitor)
        await until(guest, lambda f: f[-1].stale == 1)
