"""The initramfs: our program, compiled once, and kept by what it was made of."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path

from qemu_ring.errors import HostError
from qemu_ring.guest.linux.cache import linux_cache
from qemu_ring.programs import Runner, output_of

__all__ = ["cpio", "initramfs"]

_FLAGS = ("-std=gnu11", "-O2", "-Wall", "-Wextra", "-Werror", "-static", "-s", "-pthread")
_COMPILER = "gcc"
_DIRECTORY, _PROGRAM = 0o40755, 0o100755


async def initramfs(cache: Path | None = None) -> Path:
    """The initramfs with our program as its first process; compiled if it was not yet.

    Args:
        cache: qemu-ring's cache directory; None for the user's.

    Raises:
        HostError: there is no C compiler, or no static C library.
        BuildError: it does not compile.
    """
    source = files(__package__).joinpath("workload.c").read_bytes()
    compiler = await output_of(_COMPILER, "--version")
    if compiler is None:
        raise HostError(
            "there is no C compiler to make the Linux guest's program with",
            hint="install one: apt-get install gcc libc6-dev; or name an initrd",
        )
    key = hashlib.sha256("\n".join([source.decode(), compiler, *_FLAGS]).encode()).hexdigest()[:20]
    kept = linux_cache(cache)
    place = kept.root / f"initramfs-{key}"
    if place.exists():
        return place
    async with kept.lock(lambda: None), kept.work() as work:
        program, made = work / "init", work / "initramfs"
        (work / "workload.c").write_bytes(source)
        await Runner(kept.log("initramfs")).run(
            "compiling the Linux guest's program",
            *(_COMPILER, *_FLAGS, "-o", program, "workload.c"),
            cwd=work,
            timeout=120,
        )
        made.write_bytes(cpio({"dev": None, "proc": None, "init": program.read_bytes()}))
        made.rename(place)  # whole, or not there
    return place


def cpio(content: dict[str, bytes | None]) -> bytes:
    """An archive in cpio's "newc" format, as the kernel unpacks it: programs, None: directories."""
    return b"".join(_entries(content))


def _entries(content: dict[str, bytes | None]) -> Iterator[bytes]:
    for number, (name, data) in enumerate(content.items(), 1):
        yield _entry(name, number, _DIRECTORY if data is None else _PROGRAM, data or b"")
    yield _entry("TRAILER!!!", 0, 0, b"")


def _entry(name: str, inode: int, mode: int, data: bytes) -> bytes:
    # Inode, mode, uid, gid, links, time, size, 2 device numbers, 2 of a node, name's size, check.
    fields = (inode, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(name) + 1, 0)
    head = "070701" + "".join(f"{field:08X}" for field in fields) + name + "\0"
    return _padded(head.encode()) + _padded(data)


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 4)
