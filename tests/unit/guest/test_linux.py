"""The Linux guest's parts: initramfs, kernel, parameters, reports."""

from __future__ import annotations

from pathlib import Path

import pytest

from qemu_ring.errors import HostError, UsageError
from qemu_ring.guest.linux import (
    LinuxPattern,
    LinuxReport,
    LinuxWorkload,
    debian_kernel,
    initramfs,
    read_reports,
)
from qemu_ring.guest.linux.initramfs import cpio
from qemu_ring.guest.linux.report import failure


def test_archive_byte_by_byte() -> None:
    entry = (
        b"070701"  # newc
        b"00000001000081ED0000000000000000"  # inode, mode, uid, gid
        b"0000000100000000"  # links, time
        b"00000003"  # size
        b"00000000000000000000000000000000"  # devices
        b"0000000500000000"  # length of the name, no checksum
        b"init\0\0"
        b"abc\0"
    )
    assert len(entry) == 110 + 6 + 4
    found = cpio({"init": b"abc"})
    assert found.startswith(entry)
    assert found[len(entry) :].startswith(b"070701")
    assert b"TRAILER!!!\0" in found
    assert len(found) % 4 == 0


async def test_initramfs_is_made_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = await initramfs(tmp_path)
    content = made.read_bytes()
    assert content.startswith(b"070701")
    assert b"\x7fELF" in content
    before = made.stat().st_mtime_ns
    assert await initramfs(tmp_path) == made
    assert made.stat().st_mtime_ns == before
    assert sorted(path.name for path in (tmp_path / "linux").iterdir()) == [
        made.name,
        "lock",
        "logs",
        "work",
    ]
    assert list((tmp_path / "linux/work").iterdir()) == []
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(HostError, match=r"no C compiler .* apt-get install gcc libc6-dev"):
        await initramfs(tmp_path)


async def test_kernel_that_is_there_is_not_fetched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(HostError, match="apt knows no linux-image-cloud-amd64"):
        await debian_kernel(tmp_path)
    (tmp_path / "linux/vmlinuz-6.1").write_bytes(b"")
    assert await debian_kernel(tmp_path) == tmp_path / "linux/vmlinuz-6.1"


def test_parameters_on_the_command_line() -> None:
    workload = LinuxWorkload(8192, LinuxPattern.RANDOM, 1000, 0.25)
    assert workload.append() == (
        "qemu_ring.bytes=8192 qemu_ring.pattern=random qemu_ring.rate=1000 qemu_ring.report_ms=250"
    )
    assert "rate=0" in LinuxWorkload(4096).append()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((4095,), "whole pages"),
        ((0,), "whole pages"),
        ((4096, LinuxPattern.LOOP, 0.5), "1 or more"),
        ((4096, LinuxPattern.LOOP, None, 0.0), "0.01 or more"),
    ],
)
def test_parameters_that_cannot_be(arguments: tuple[object, ...], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        LinuxWorkload(*arguments)  # type: ignore[arg-type]


def test_reports_are_read_from_between_other_words() -> None:
    serial = (
        "[    0.1] Linux\r\nqemu-ring-guest: running cpus=1 pages=2\r\n"
        "qemu-ring-guest: writes=10 passes=5 stale=0 ms=100\r\n"
        "[    9.9] noise\r\n"
        "qemu-ring-guest: writes=20 passes=10 stale=1 ms=200\r\n"
        "qemu-ring-guest: writes=30 pas"
    )
    assert read_reports(serial) == [LinuxReport(10, 5, 0, 100), LinuxReport(20, 10, 1, 200)]
    assert failure(serial) is None
    assert failure("x\r\nqemu-ring-guest: failed: a thread: No\r\n") == "a thread: No"
    assert (
        failure("[ 1.0] Kernel panic - not syncing: VFS\r\n") == "Kernel panic - not syncing: VFS"
    )
