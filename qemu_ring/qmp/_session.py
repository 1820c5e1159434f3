"""One connection to a monitor, from its making to its last cleanup."""

from __future__ import annotations

import asyncio
from pathlib import Path

from qemu.qmp import ConnectError as LibraryConnectError
from qemu.qmp import Runstate

from qemu_ring.qmp._client import Cause, Client, explain
from qemu_ring.qmp.address import Address, unix_name
from qemu_ring.qmp.clock import PeerClock
from qemu_ring.qmp.errors import DisconnectedError, ProtocolError
from qemu_ring.qmp.events import EventHub
from qemu_ring.tasks import settled

__all__ = ["Session", "hint_for"]


class Session:
    """A connection, which begins at once and ends for good; needs a running event loop.

    Attributes:
        client: to execute commands by.
        hub: hands its events out.
        up: done when capabilities have been negotiated.
        cause: why it ended, if it did not end by `close`.
    """

    # Life cycle: one task connects, waits for the end of the connection, and calls the
    # library's disconnect(). Nobody else does, because that call may run only once and must
    # not be cancelled half-way; and it must run even if nobody closes the session, because it
    # is what retrieves the exceptions of the library's tasks.

    def __init__(self, name: str, address: Address, clock: PeerClock) -> None:
        self.client = Client(name)
        self.hub = EventHub(name, self.lost, clock)
        self.client.events.event_filter = self.hub.dispatch
        self.up: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.cause: Cause | None = None
        self._name = name
        self._closing = False
        self._task = asyncio.create_task(self._run(address), name=f"qmp {name}")

    async def opened(self, timeout: float) -> None:
        """Wait until it is up, or has failed, or so many seconds have passed."""
        await asyncio.wait(
            {self._task, self.up}, timeout=timeout, return_when=asyncio.FIRST_COMPLETED
        )

    async def wait(self) -> None:
        """Wait until it has ended; has no deadline of its own."""
        await asyncio.wait({self._task})

    async def close(self, *, timeout: float = 5.0) -> None:
        """End it, as `Monitor.close` says."""
        self._closing = True
        if self.up.done():
            self.client.hang_up()
        else:
            self._task.cancel()
        timer = asyncio.get_running_loop().call_later(timeout, self.client.abort)
        try:
            await settled({self._task}, on_cancel=self.client.abort)
        finally:
            timer.cancel()

    @property
    def connected(self) -> bool:
        """Whether commands can be sent, as far as is known."""
        return self.client.runstate is Runstate.RUNNING

    @property
    def why(self) -> BaseException | None:
        """The exception that ended it."""
        return self.cause.error if self.cause else None

    def lost(self, during: str = "") -> DisconnectedError:
        """Make the error that tells why, and when, the connection went away."""
        text = self.cause.text if self.cause else "it was closed"
        error = DisconnectedError(
            f"{self._name}: monitor gone{during}: {text}", hint=hint_for(self.why)
        )
        error.__cause__ = self.why
        return error

    async def _run(self, address: Address) -> None:
        """Be the session, from connecting to the last cleanup."""
        client = self.client
        try:
            await client.connect(unix_name(address) if isinstance(address, str | Path) else address)
        except LibraryConnectError as error:
            self.cause = explain(error)
            return
        except AssertionError:
            # There was a session, but the peer left within the same turn of the loop, and the
            # library asserts that it is still running. It is owed its disconnect(), below.
            pass
        self.up.set_result(None)
        try:
            while client.runstate is Runstate.RUNNING:
                await client.runstate_changed()
        finally:
            if not self._closing:
                client.abort()  # A failed peer gets nothing more; waiting for it could last.
            try:
                await client.disconnect()
            except Exception as error:  # noqa: BLE001 - the library raises whatever ended it
                if not self._closing:
                    self.cause = explain(error)
            self.hub.end()


def hint_for(error: BaseException | None) -> str:
    """Say what to do next about a connection that failed for this reason."""
    match error:
        case FileNotFoundError() | NotADirectoryError():
            return "is QEMU running, with -qmp unix:PATH,server=on,wait=off?"
        case ConnectionRefusedError():
            return "QEMU has ended, or listens elsewhere"
        case PermissionError():
            return "run as the user who started QEMU"
        case EOFError() | ConnectionError():
            return "QEMU may have ended, or this connection only: see whether its process runs"
        case ProtocolError():
            return "is it a QMP monitor (mode=control), and not a human one?"
    return ""
