"""The memory of QEMUs that run already, found by asking them, to compare it.

QEMU tells its RAM blocks, and where it has them mapped. What lies there is compared: the file, if
it is shared memory, else the memory of the process. A file's name is never trusted: another file
may have it by now, or elsewhere.
"""

from __future__ import annotations

import asyncio
import os
import re
import stat
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import ExitStack, asynccontextmanager, suppress
from dataclasses import dataclass

from qemu_ring.errors import UsageError
from qemu_ring.machine import Machine, serving_process
from qemu_ring.machine.instance import process_of
from qemu_ring.machine.mappings import Mapping, is_mapped, mappings, opened_mapping, path_in_process
from qemu_ring.qmp import CommandError, Monitor, commands
from qemu_ring.verify import Block, Memory, ProcessMemory, VerifyError

__all__ = ["OpenedBlocks", "opened_blocks", "require_comparable"]

_BLOCK = re.compile(
    r"^\s*(?P<name>\S.*?)\s+\d+ \S+  0x[0-9a-f]+ 0x(?P<used>[0-9a-f]+) 0x[0-9a-f]+"
    r"(?: 0x(?P<address>[0-9a-f]+)\s+r[ow])?\s*$",
    re.MULTILINE,
)
"""A line of `info ramblock`; QEMU before 8.1 does not tell where a block is mapped."""
_RANGE = re.compile(
    r"^  (?P<start>[0-9a-f]{16})-[0-9a-f]{16} \(prio -?\d+, (?:nv-)?(?:ram|rom|romd)\): "
    r"(?P<name>.+?)(?: @(?P<offset>[0-9a-f]{16}))?(?: KVM)?\s*$",
    re.MULTILINE,
)
"""A line of `info mtree -f`."""
_HOST_ADDRESS = re.compile(r" is 0x([0-9a-f]+)\s*$")


@dataclass(frozen=True, slots=True)
class OpenedBlocks:
    """RAM blocks that can be compared.

    Args:
        blocks: with memory that is open as long as the context lasts.
        left_out: names of those whose place in QEMU's memory is not known. None of them is
            the guest's main memory, or a memory backend.
    """

    blocks: list[Block]
    left_out: tuple[str, ...] = ()


@asynccontextmanager
async def opened_blocks(
    source: Machine, destination: Machine, *, processes: Sequence[int | None] = (None, None)
) -> AsyncIterator[OpenedBlocks]:
    """Open the memory behind both guests' RAM blocks, for as long as the context lasts.

    Args:
        source, destination: both sides, on this host.
        processes: their QEMUs' process ids, where known; else they are looked for.

    Raises:
        UsageError: a QEMU is not on this host, or may not be looked at; the two sides have
            different memory backends, or the same memory.
    """
    with ExitStack() as files:
        sides = []
        for machine, process in zip((source, destination), processes, strict=True):
            sides.append(await _Side.of(machine, process, files))
        backends = [sorted(side.backends) for side in sides]
        if backends[0] != backends[1]:
            raise UsageError(
                f"memory backends differ: {', '.join(backends[0])} at the source, "
                f"{', '.join(backends[1])} at the destination"
            )
        blocks, left_out = [], []
        for name, size in sides[0].sizes.items():
            memories = [side.memory.get(name) for side in sides]
            if memories[0] is None or memories[1] is None:
                for side in sides:
                    side.require_unimportant(name)
                left_out.append(name)
            else:
                blocks.append(Block(name, memories[0], memories[1], size))
        require_comparable(blocks)
        yield OpenedBlocks(blocks, tuple(left_out))


def require_comparable(blocks: Sequence[Block]) -> None:
    """Check what a comparison needs, as far as it can be told before a migration.

    Raises:
        UsageError: one of them cannot be read, is too short, or both sides are the same memory.
    """
    for block in blocks:
        files = []
        for role, memory in (("source", block.source), ("destination", block.destination)):
            if isinstance(memory, ProcessMemory):
                try:
                    memory.require_readable(block.size)
                except VerifyError as error:
                    raise UsageError(
                        f"memory {block.name}: that of the {role}'s process {memory.process} "
                        f"cannot be read: {error.message}",
                        hint="use the QEMU's user with kernel.yama.ptrace_scope 0, or root, or "
                        "memory backends with share=on",
                    ) from error
                continue
            status = os.fstat(memory)
            if not stat.S_ISREG(status.st_mode):
                raise UsageError(
                    f"memory {block.name}: what is behind it at the {role} is no file",
                    hint="give QEMU a mem-path that names a file, not a directory",
                )
            if status.st_size < block.size:
                raise UsageError(
                    f"memory {block.name}: the {role}'s file has {status.st_size:,} bytes, "
                    f"not {block.size:,}"
                )
            files.append((status.st_dev, status.st_ino))
        if block.source == block.destination or (len(files) == 2 and files[0] == files[1]):
            raise UsageError(
                f"memory {block.name}: both sides have the same file, nothing can differ",
                hint="give each QEMU a file of its own",
            )


class _Side:
    """One QEMU's RAM blocks.

    Attributes:
        sizes: bytes, by name: all that a migration sends.
        backends: the names of those that are memory backends.
        main: the name of the one at guest address 0; empty if there is none.
        memory: opened, by name.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self.sizes: dict[str, int] = {}
        self.backends: set[str] = set()
        self.main = ""
        self.memory: dict[str, Memory] = {}

    @classmethod
    async def of(cls, machine: Machine, process: int | None, files: ExitStack) -> _Side:
        """Ask a QEMU, and open what it has mapped."""
        side, monitor = cls(machine.name), machine.monitor
        told = list(_BLOCK.finditer(await commands.human(monitor, "info ramblock")))
        side.sizes = {one["name"]: int(one["used"], 16) for one in told if int(one["used"], 16)}
        addresses = {one["name"]: int(one["address"], 16) for one in told if one["address"]}
        listed = [backend.id for backend in await commands.query_memdev(monitor)]
        side.backends = {name for name in side.sizes if _tail(name) in listed}
        seen = await _in_guest(monitor)
        found = _by_region(side.sizes, seen)
        side.main = next((name for name, at in found.items() if at == seen.main), "")
        candidates = [process] if process else await _processes(monitor)
        if not candidates:
            raise UsageError(
                f"{machine.name}: its memory cannot be compared: its QEMU is not on this host",
                hint="leave the comparison out, or run this beside both QEMUs",
            )
        for pid in candidates:
            try:
                mapped = await asyncio.to_thread(mappings, pid)
            except OSError as error:
                problem = UsageError(
                    f"{machine.name}: process {pid} may not be looked at: {error.strerror}",
                    hint="use the QEMU's user, or root",
                )
                continue
            if seen.main is None or is_mapped(seen.main, side.sizes.get(side.main, 1), mapped):
                break
            problem = UsageError(
                f"{machine.name}: process {pid} is not its QEMU",
                hint="run this where the QEMU's process has the same number",
            )
        else:
            raise problem
        addresses = found | addresses
        for name in side.backends - addresses.keys():
            address = await _address_of_backend(monitor, _tail(name), pid, mapped, side.sizes[name])
            if address is not None:
                addresses[name] = address
        for name in side.sizes.keys() & addresses.keys():
            memory = _opened(pid, addresses[name], side.sizes[name], mapped, files)
            if memory is not None:
                side.memory[name] = memory
        return side

    def require_unimportant(self, name: str) -> None:
        """Check that a block may be left out.

        Raises:
            UsageError: it is main memory, or a backend's.
        """
        if name == self.main or name in self.backends:
            raise UsageError(
                f"{self._name}: memory {name} was not found in its QEMU's process",
                hint="use -object memory-backend-file or -memfd with share=on",
            )


@dataclass(frozen=True, slots=True)
class _Seen:
    """What is mapped into the guest: host addresses of memory regions, by name.

    Args:
        regions: of each name the addresses at which one begins; several if there are several.
        main: of guest address 0.
    """

    regions: dict[str, set[int]]
    main: int | None


async def _in_guest(monitor: Monitor) -> _Seen:
    regions: dict[str, set[int]] = {}
    main = None
    # Of other address spaces, too: that of plugged memory begins at 0 like the guest's own.
    asked: set[tuple[str, str]] = set()
    for one in _RANGE.finditer(await commands.human(monitor, "info mtree -f")):
        if (one["start"], one["name"]) in asked:
            continue
        asked.add((one["start"], one["name"]))
        address = int(one["start"], 16)
        said = await commands.human(monitor, f"gpa2hva {address:#x}")
        found = _HOST_ADDRESS.search(said)
        if found is None or f" ({one['name']}) is " not in said:
            continue
        at = int(found[1], 16) - int(one["offset"] or "0", 16)
        regions.setdefault(one["name"], set()).add(at)
        if address == 0:
            main = at
    return _Seen(regions, main)


def _by_region(names: dict[str, int], seen: _Seen) -> dict[str, int]:
    """Addresses of the blocks whose region is known for sure."""
    tails = Counter(_tail(name) for name in names)
    found = {}
    for name in names:
        for region in (name, _tail(name)):
            if len(at := seen.regions.get(region, set())) == 1 and tails[_tail(name)] == 1:
                found[name] = next(iter(at))
    return found


def _tail(name: str) -> str:
    """The region's name of a block's, such as vga.vram of 0000:00:02.0/vga.vram."""
    return name.rpartition("/")[2]


async def _processes(monitor: Monitor) -> list[int]:
    """QEMU's process, if it is on this host, first as is likelier.

    Whoever serves its socket may be a proxy; its threads may have other numbers where it runs.
    So one that its threads are of comes first: the other may have memory at the same address.
    """
    found = []
    for vcpu in (await commands.query_cpus_fast(monitor))[:1]:
        process = await asyncio.to_thread(process_of, vcpu.thread_id)
        found += [] if process is None else [process]
    with suppress(OSError):
        peer = monitor.transport
        serving = None if peer is None else await asyncio.to_thread(serving_process, peer)
        if serving is not None and serving not in found:
            found.append(serving)
    return found


async def _address_of_backend(
    monitor: Monitor, backend: str, process: int, mapped: list[Mapping], size: int
) -> int | None:
    """Where a backend is mapped that the guest does not see now: the only one of its file."""
    try:
        path = str(await commands.qom_get(monitor, f"/objects/{backend}", "mem-path"))
    except CommandError:
        return None
    try:
        inode = (await asyncio.to_thread(path_in_process(process, path).stat)).st_ino
    except OSError:
        return None
    at = [m.start for m in mapped if m.inode == inode and m.offset == 0 and m.end - m.start >= size]
    return at[0] if len(at) == 1 else None


def _opened(
    process: int, address: int, size: int, mapped: list[Mapping], files: ExitStack
) -> Memory | None:
    """The memory there; None if not all of it is mapped."""
    if not is_mapped(address, size, mapped):
        return None
    parts = [one for one in mapped if one.start < address + size and one.end > address]
    first = parts[0]
    same_file = {(one.inode, one.shared) for one in parts} == {(first.inode, True)}
    if same_file and first.inode and first.offset == 0 and first.start == address:
        fd = opened_mapping(process, first)
        if fd is not None:
            files.callback(os.close, fd)
            return fd
    return ProcessMemory(process, address)
