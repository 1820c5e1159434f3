"""A channel that can be cut, or something done at its last moment before the first byte."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from qemu_ring.migration import Channel, Fd
from qemu_ring.migration.channels.channel import Connection
from qemu_ring.qmp import Monitor

__all__ = ["Strike", "Struck"]

Strike = Callable[[], Awaitable[None]]


@dataclass(eq=False)
class Struck(Channel):
    """Another channel, or a socket pair that can be cut.

    Args:
        inner: the other channel.
        strike: done before the first byte.
        cuttable: whether to hold on to the socket pair until `cut`. Meanwhile neither QEMU
            notices that the other one is gone.
    """

    inner: Channel
    strike: Strike | None = None
    cuttable: bool = False
    ends: list[socket.socket] = field(default_factory=list)
    words = "struck"

    @property
    def bidirectional(self) -> bool:  # type: ignore[override]
        return self.inner.bidirectional

    def connect(self, source: Monitor | None, destination: Monitor | None) -> Connection:
        return StruckConnection(self, source, destination)

    def cut(self) -> None:
        for end in self.ends:
            with contextlib.suppress(OSError):  # the other end's owner is gone
                end.shutdown(socket.SHUT_RDWR)
        self.close()

    def close(self) -> None:
        for end in self.ends:
            end.close()
        self.ends.clear()


class StruckConnection(Connection):
    def __init__(
        self, channel: Struck, source: Monitor | None, destination: Monitor | None
    ) -> None:
        super().__init__(source, destination)
        self.channel = channel
        self.inner = channel.inner.connect(source, destination)
        if channel.cuttable and isinstance(channel.inner, Fd):
            for end in (self.inner._ours, self.inner._theirs):  # type: ignore[attr-defined]
                channel.ends.append(end.dup())

    async def listen(self) -> str:
        return await self.inner.listen()

    async def reach(self) -> str:
        uri = await self.inner.reach()
        if self.channel.strike is not None:
            await self.channel.strike()
        return uri

    def established(self) -> None:
        self.inner.established()

    def close(self, completed: bool) -> None:
        self.inner.close(completed)
