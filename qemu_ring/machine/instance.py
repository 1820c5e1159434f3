"""Which QEMU a monitor is of, and whether its process runs, as far as that can be known."""

from __future__ import annotations

import asyncio
import os
import select
from asyncio.trsock import TransportSocket
from collections.abc import Sequence
from contextlib import suppress
from enum import Enum
from pathlib import Path
from socket import AF_UNIX

from qemu_ring.machine.sockets import children, credentials, sockets_of, tcp_socket
from qemu_ring.qmp import Monitor, commands

__all__ = ["Instance", "Life", "process_of"]


class Life(Enum):
    """What is known of a QEMU's process."""

    RUNS = "runs"
    ENDED = "ended"
    UNKNOWN = "unknown"
    """It is on another host, behind a proxy, or not to be told from others."""


class Instance:
    """A QEMU among all others, made by `of` while its monitor is connected; `close` it.

    The host's ids of the threads that run its vCPUs tell it from one that was started later,
    with the same arguments or by the same path, and its process from a proxy's.
    """

    def __init__(self, threads: frozenset[int], process: int | None) -> None:
        self._threads = threads
        self._process = process

    @classmethod
    async def of(cls, monitor: Monitor) -> Instance:
        """Find out which QEMU answers.

        Raises:
            QmpError: it does not.
        """
        threads = await _threads(monitor)
        peer = monitor.transport
        return cls(threads, None if peer is None else _process(peer, threads))

    async def is_at(self, monitor: Monitor) -> bool:
        """Whether it is this QEMU that answers there; False if that is not known.

        Raises:
            QmpError: it does not answer.
        """
        return not self._threads.isdisjoint(await _threads(monitor))

    @property
    def life(self) -> Life:
        """Whether its process runs."""
        if self._process is None:
            return Life.UNKNOWN
        poll = select.poll()
        poll.register(self._process, select.POLLIN)
        return Life.ENDED if poll.poll(0) else Life.RUNS

    async def ends(self, within: float) -> bool:
        """Whether its process is known to have ended, or is seen to in so many seconds."""
        if self._process is None:
            return False
        process, loop, ended = os.dup(self._process), asyncio.get_running_loop(), asyncio.Event()
        loop.add_reader(process, ended.set)
        try:
            await asyncio.wait_for(ended.wait(), within)
        except asyncio.TimeoutError:
            return False
        finally:
            loop.remove_reader(process)
            os.close(process)
        return True

    @property
    def is_local(self) -> bool:
        """Whether it is known to run on this host."""
        return self._process is not None

    def close(self) -> None:
        """Forget its process."""
        if self._process is not None:
            os.close(self._process)
            self._process = None


async def _threads(monitor: Monitor) -> frozenset[int]:
    return frozenset(cpu.thread_id for cpu in await commands.query_cpus_fast(monitor))


def _process(peer: TransportSocket, threads: frozenset[int]) -> int | None:
    """A pidfd of the process at the other end, if all of the threads are its own."""
    for pid in _candidates(peer, threads) if threads else ():
        with suppress(OSError, ValueError):  # it has ended, or is in another PID namespace
            process = os.pidfd_open(pid)
            if all(Path(f"/proc/{pid}/task/{thread}").exists() for thread in threads):
                return process
            os.close(process)
    return None


def _candidates(peer: TransportSocket, threads: frozenset[int]) -> Sequence[int]:
    """Processes on this host that may be at the other end."""
    if peer.family == AF_UNIX:
        listener = credentials(peer)[0]
        return [listener, *children(listener)]  # whoever listens need not be who answers
    other_end = tcp_socket(peer.getpeername()[:2], peer.getsockname()[:2])
    owner = process_of(min(threads))
    if other_end is None or owner is None or other_end not in sockets_of(owner):
        return []  # on another host, or behind a tunnel to one
    return [owner]


def process_of(thread: int) -> int | None:
    """The process that a thread of this host belongs to; None if there is no such thread."""
    with suppress(OSError):
        for line in Path(f"/proc/{thread}/status").read_text(errors="replace").splitlines():
            if line.startswith("Tgid:"):
                return int(line.split()[1])
    return None
