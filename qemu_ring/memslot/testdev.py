"""KVM memslots in any shape, through a patched QEMU's device `memslot-testdev`.

The device maps parts of memory backends (`Window`) wherever it is told to. A `Layout` is
all that it maps at a time; the next one takes its place in one memory transaction. So
memslots are removed, added, moved, split, resized and made read-only, alone or several
at once. QEMU does a whole list of layouts, again and again, in one command.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from qemu_ring.machine import Device, MemoryBackend
from qemu_ring.memslot.policy import require_patched
from qemu_ring.qmp import Monitor, QmpModel

__all__ = ["Layout", "MemslotTestdev", "Window", "memslot_testdev"]

_COMMAND = "x-memslot-testdev-map"
_NOTHING = frozenset[str]()


@dataclass(frozen=True, slots=True)
class Window:
    """A part of a memory backend at a guest-physical address: a memslot of its own.

    Args:
        address: guest-physical, bytes; the guest's physical addresses end after the window.
        backend: its id.
        offset: where the part begins in the backend, bytes.
        size: bytes.

    All are multiples of the page size.
    """

    address: int
    backend: str
    offset: int
    size: int

    def part(self, start: int, size: int) -> Window:
        """The part of this window from `start`, bytes, where it is now."""
        return Window(self.address + start, self.backend, self.offset + start, size)

    def at(self, address: int) -> Window:
        """The same memory at another address."""
        return Window(address, self.backend, self.offset, self.size)


@dataclass(frozen=True, slots=True)
class Layout:
    """All that the device maps at a time.

    Args:
        windows: the windows; where they overlap, the later one is seen.
        read_only: ids of backends that the guest may only read.
    """

    windows: tuple[Window, ...] = ()
    read_only: frozenset[str] = _NOTHING

    def slots(self) -> set[tuple[Window, bool]]:
        """The memslots, each with whether it is read-only, if no windows overlap."""
        return {(window, window.backend in self.read_only) for window in self.windows}

    def arguments(self) -> dict[str, object]:
        """As QMP has it."""
        return {
            "windows": [
                {
                    "address": window.address,
                    "memdev": window.backend,
                    "offset": window.offset,
                    "size": window.size,
                }
                for window in self.windows
            ],
            "readonly": sorted(self.read_only),
        }


class _Mapped(QmpModel):
    commit_ns: tuple[int, ...]


def memslot_testdev(backends: Iterable[MemoryBackend]) -> Device:
    """The device to put in a machine's description; a machine has one at most.

    Args:
        backends: the memory that it can map, at most 64; nothing else may use it.
    """
    return Device("memslot-testdev", {"memdevs": [backend.id for backend in backends]})


class MemslotTestdev:
    """Drives the `memslot-testdev` of one guest.

    Args:
        monitor: the guest's.
    """

    def __init__(self, monitor: Monitor) -> None:
        self._monitor = monitor
        self._layout = Layout()
        self.removals = 0
        """Memslots removed so far, those that changed their shape included."""

    def moved(self, monitor: Monitor) -> MemslotTestdev:
        """The same device of the same guest, after it was migrated to another QEMU."""
        device = MemslotTestdev(monitor)
        device._layout = self._layout
        return device

    async def map(
        self,
        *layouts: Layout,
        repeat: int = 1,
        pause_seconds: float = 0.0,
        timeout: float | None = None,
    ) -> tuple[int, ...]:
        """Map one layout after another; the last one stays.

        Args:
            layouts: in this order, each in one memory transaction.
            repeat: how often to go through all of them.
            pause_seconds: time to leave the guest after each transaction. Without it QEMU
                keeps its big lock throughout: a vCPU that wrote to memory that was not
                there waits until the end.
            timeout: seconds; None for the pauses and 0.1 s a transaction on top of what
                any command may take.

        Returns:
            For each transaction, the time it took, nanoseconds.

        Raises:
            QemuUnsuitableError: the QEMU is not patched.
            QmpError: as in `Monitor.call`; CommandError if a layout cannot be, or the
                machine has no such device.
        """
        await require_patched(self._monitor, _COMMAND)
        if timeout is None:
            timeout = self._monitor.answer_timeout + len(layouts) * repeat * (pause_seconds + 0.1)
        mapped = await self._monitor.call(
            _COMMAND,
            _Mapped,
            {
                "layouts": [layout.arguments() for layout in layouts],
                "repeat": repeat,
                "pause-us": round(pause_seconds * 1e6),
            },
            timeout=timeout,
        )
        first = _removals((self._layout, *layouts))
        again = _removals((layouts[-1], *layouts))
        self.removals += first + (repeat - 1) * again
        self._layout = layouts[-1]
        return mapped.commit_ns


def _removals(layouts: Sequence[Layout]) -> int:
    """Memslots that go away between one layout and the next."""
    return sum(len(before.slots() - after.slots()) for before, after in itertools.pairwise(layouts))
