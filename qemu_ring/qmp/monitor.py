"""One connection to one QEMU's QMP monitor."""

from __future__ import annotations

import asyncio
import errno
import functools
import socket
import time
from asyncio.trsock import TransportSocket
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from types import TracebackType
from typing import Any, TypeVar, cast

from pydantic import TypeAdapter, ValidationError
from qemu.qmp import ExecInterruptedError, ExecuteError, QMPError, Runstate, StateError
from qemu.qmp.qmp_client import BadReplyError

from qemu_ring._compat import timeout as deadline
from qemu_ring.errors import ExitStatus, UsageError
from qemu_ring.qmp._session import Session, hint_for
from qemu_ring.qmp.address import Address, described, wrong_address
from qemu_ring.qmp.clock import PeerClock
from qemu_ring.qmp.errors import (
    CommandError,
    CommandTimeoutError,
    ConnectError,
    ProtocolError,
    QmpError,
)
from qemu_ring.qmp.events import Listener
from qemu_ring.qmp.models import AddedFd, VersionInfo
from qemu_ring.qmp.patience import answer_timeout
from qemu_ring.qmp.schema import Schema

__all__ = ["Address", "Monitor"]

T = TypeVar("T")

_BEGINNING = ("migrate", "migrate-incoming")
"""Commands that cause an event, which comes before their answer: that a migration is set up."""


class Monitor:
    """A QMP session: commands, events, and one clear end.

    Made by `connect`; use it as an async context manager, or call `close`. QEMU serves one
    client per monitor socket. Any number of tasks may use one Monitor at once.

    Attributes:
        name: names this connection in messages and logs.
        version: QEMU's major, minor and micro version.
        package: the distribution's name for its package; may be empty.
        clock: QEMU's, compared with this host's.
        answer_timeout: how long a command may take whose caller does not say, in seconds; may
            be changed at any time.
    """

    def __init__(self, name: str, again: Address | None = None) -> None:
        self.name = name
        self.answer_timeout = answer_timeout()
        self.version: tuple[int, int, int] = (0, 0, 0)
        self.package = ""
        self.clock = PeerClock()
        self._again = again
        self._session: Session
        self._closed = False
        self._fd_lock = asyncio.Lock()
        self._reconnecting = asyncio.Lock()
        self._schema: Schema | None = None

    @classmethod
    async def connect(
        cls,
        address: Address,
        *,
        name: str = "qemu",
        timeout: float | None = None,
        again: Address | None = None,
    ) -> Monitor:
        """Connect, take QEMU's greeting and negotiate capabilities.

        Args:
            address: where the monitor is. A socket given belongs to the Monitor from here on,
                and is closed even if this fails.
            name: names this connection in messages and logs.
            timeout: the deadline for all of it, in seconds; None for `answer_timeout()`.
            again: where to connect to if the connection is lost; None for `address`.

        Raises:
            ConnectError: nobody listens, the peer is no QMP server, or it did not answer in
                time; nothing is left running.
        """
        if again is None and not isinstance(address, socket.socket):
            again = address
        monitor = cls(name, again)
        await monitor._open(address, timeout)
        return monitor

    async def reconnect(self, *, timeout: float | None = None) -> None:
        """Connect again, if the connection was lost; nothing is done if it was not.

        Commands can be sent then, and listeners made. Listeners from before have come to their
        end. Whether it is the same QEMU that answers is for the caller to find out.

        Args:
            timeout: as in `connect`, seconds.

        Raises:
            ConnectError: as in `connect`; or it was closed, or there is no address.
        """
        async with self._reconnecting:
            if self.connected:
                return
            if self._again is None or self._closed:
                raise ConnectError(f"{self.name}: its monitor cannot be connected to again")
            await self._session.close(timeout=0)
            self._schema = None
            await self._open(self._again, timeout)

    async def _open(self, address: Address, timeout: float | None) -> None:
        if wrong := wrong_address(address):
            why, hint = wrong
            raise _no_such_monitor(f"{_no_session(self.name, address)}: {why}", hint)
        timeout = self.answer_timeout if timeout is None else timeout
        session = self._session = Session(self.name, address, self.clock)
        try:
            await session.opened(timeout)
            self._read_greeting(address, timeout)
        except BaseException:
            try:
                await session.close()
            finally:
                if isinstance(address, socket.socket):
                    address.close()
            raise

    async def close(self, *, timeout: float = 5.0) -> None:
        """End the session, whatever state the peer is in; may be called again.

        What was sent is flushed first; a peer that does not read for `timeout` seconds is cut
        off. Commands still waiting raise DisconnectedError. The peer can cause no error here,
        and no task is left behind, not even when this is cancelled.
        """
        self._closed = True
        await self._session.close(timeout=timeout)

    async def __aenter__(self) -> Monitor:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()

    @property
    def connected(self) -> bool:
        """Whether commands can be sent, as far as is known."""
        return self._session.connected

    @property
    def can_reconnect(self) -> bool:
        """Whether there is an address for `reconnect`, and it was not closed."""
        return self._again is not None and not self._closed

    async def wait_disconnected(self) -> None:
        """Wait until the connection has ended, by whoever's doing; has no deadline of its own."""
        await self._session.wait()

    async def execute(
        self,
        name: str,
        arguments: Mapping[str, object] | None = None,
        *,
        timeout: float | None = None,
        oob: bool = False,
    ) -> object:
        """Run a QMP command.

        Args:
            name: the command, such as ``query-status``.
            arguments: its arguments by QMP name; anything that JSON can carry.
            timeout: the deadline for the answer, in seconds; None for `answer_timeout`.
            oob: run it out of band, ahead of other commands; for the few that allow it.

        Returns:
            What QEMU returned, as parsed from JSON.

        Raises:
            UsageError: QMP cannot carry an argument; nothing was sent.
            CommandError: QEMU answered with an error.
            CommandTimeoutError: no answer in time; the outcome is unknown.
            DisconnectedError: the monitor is gone; the message tells if the command was sent.
            ProtocolError: the answer has neither a result nor an error.
        """
        _require_utf8(f"{self.name}: {name}", arguments)
        async with self._answered(name, timeout) as session:
            if name not in _BEGINNING:
                return await session.client.execute(name, arguments, oob=oob)
            with Listener(session.hub, ("MIGRATION",)) as events:
                sent = time.monotonic()
                answer = await session.client.execute(name, arguments, oob=oob)
                for event in events.taken():
                    if event.data.get("status") == "setup":
                        self.clock.caused(sent, event.seconds)
            return answer

    async def call(
        self,
        name: str,
        model: type[T],
        arguments: Mapping[str, object] | None = None,
        *,
        timeout: float | None = None,
    ) -> T:
        """Run a QMP command and parse its result.

        Args:
            name: the command.
            model: a pydantic model, or any type that pydantic can check, as ``list[CpuInfo]``.
            arguments: as in `execute`.
            timeout: as in `execute`, in seconds.

        Raises:
            ProtocolError: the result does not fit the model; names the command and the field.
            QmpError: as in `execute`.
        """
        result = await self.execute(name, arguments, timeout=timeout)
        return _fit(f"{self.name}: the reply to {name}", model, result)

    async def send_fd(self, name: str, fd: int, *, timeout: float | None = None) -> None:
        """Give QEMU a duplicate of a file descriptor, under a name (``getfd``).

        The caller keeps, and closes, its own `fd`.

        Raises:
            QmpError: as in `execute`; also when this monitor is no unix socket.
        """
        await self._send_fd(fd, "getfd", {"fdname": name}, timeout)

    async def add_fd(
        self,
        fd: int,
        *,
        opaque: str,
        fdset: int | None = None,
        timeout: float | None = None,
    ) -> int:
        """Give QEMU a duplicate of a file descriptor, in a set that is a file to it (``add-fd``).

        QEMU opens ``/dev/fdset/N`` by duplicating the descriptor in set N with the same access
        mode. The set stays until its descriptors are removed.

        Args:
            fd: which the caller keeps, and closes.
            opaque: what it is for, as ``query-fdsets`` shows it.
            fdset: an existing set; None for a new one.
            timeout: seconds.

        Returns:
            the set's number.

        Raises:
            QmpError: as in `send_fd`.
        """
        arguments: dict[str, object] = {"opaque": opaque}
        if fdset is not None:
            arguments["fdset-id"] = fdset
        answer = await self._send_fd(fd, "add-fd", arguments, timeout)
        return _fit(f"{self.name}: the reply to add-fd", AddedFd, answer).fdset_id

    @property
    def takes_fds(self) -> bool:
        """Whether it is a unix socket, which descriptors can be sent through."""
        client = self.transport
        return client is not None and client.family == socket.AF_UNIX

    @property
    def transport(self) -> TransportSocket | None:
        """The connection's socket, to ask about and not to use; None when it is gone."""
        return self._session.client.transport

    async def _send_fd(
        self, fd: int, command: str, arguments: Mapping[str, object], timeout: float | None
    ) -> object:
        # QEMU keeps only the newest descriptor it received, so it has to be named before the
        # next one is sent. It travels with a blank, which must not land within a message.
        async with self._answered(command, timeout) as session, self._fd_lock:
            client = session.client
            try:
                await client.flush()
                client.send_fd_scm(fd)
            except OSError as error:
                if not session.connected:
                    raise StateError("", client.runstate, Runstate.RUNNING) from error
                raise QmpError(f"{self.name}: cannot send fd {fd}: {error.strerror}") from error
            return await client.execute(command, arguments)

    def events(self, *names: str) -> Listener:
        """Listen for events; for all of them if none is named.

        ::

            with monitor.events("STOP") as events:
                await monitor.execute("stop")
                event = await events.wait(timeout=5)

        From the ``with`` on no event is missed.
        """
        return Listener(self._session.hub, names)

    async def schema(self) -> Schema:
        """Tell what this QEMU's QMP offers; asked of QEMU once.

        Raises:
            QmpError: as in `call`.
        """
        if self._schema is None:
            self._schema = await self.call("query-qmp-schema", Schema)
        return self._schema

    def _read_greeting(self, address: Address, timeout: float) -> None:
        """Take the version from the greeting, or tell why there is no session."""
        failed = _no_session(self.name, address)
        session = self._session
        greeting = session.client.greeting
        step = "(its greeting)" if greeting is None else "(capabilities negotiation)"
        if not session.up.done():
            if session.cause is None:
                raise ConnectError(
                    f"{failed}: the peer did not answer within {timeout:g} s {step}",
                    hint="QEMU serves one client per monitor: another may hold it",
                )
            text, error = session.cause
            if isinstance(error, FileNotFoundError | NotADirectoryError):
                raise _no_such_monitor(f"{failed}: {text}", hint_for(error)) from error
            if isinstance(error, OSError) and error.errno == errno.EINVAL:
                # asyncio takes a unix socket whose queue is full for connected.
                raise ConnectError(
                    f"{failed}: others wait for it already",
                    hint="QEMU serves one client per monitor: another holds it",
                )
            when = "" if isinstance(error, OSError) else f" {step}"
            raise ConnectError(f"{failed}: {text}{when}", hint=hint_for(error)) from error
        assert greeting is not None
        try:
            info = _fit("the greeting's version", VersionInfo, greeting.QMP.version)
        except ProtocolError as misfit:
            raise ConnectError(f"{failed}: {misfit.message}") from misfit
        self.version, self.package = info.qemu.triple, info.package

    @asynccontextmanager
    async def _answered(self, command: str, timeout: float | None) -> AsyncIterator[Session]:
        """Give a command its session and deadline, and the library's errors our own types."""
        session = self._session
        timeout = self.answer_timeout if timeout is None else timeout
        clock = deadline(timeout)
        try:
            async with clock:
                try:
                    yield session
                except (ExecInterruptedError, StateError):
                    await session.wait()  # Then the cause is known.
                    raise
        except TimeoutError:
            if not clock.expired():
                raise
            raise CommandTimeoutError(self.name, command, timeout) from None
        except ExecInterruptedError:
            raise session.lost(f" during {command}, outcome unknown") from session.why
        except StateError:
            raise session.lost(f", {command} was not sent") from session.why
        except ExecuteError as error:
            raise CommandError(self.name, command, error.error_class, str(error)) from None
        except BadReplyError as error:
            raise ProtocolError(f"{self.name}: {command}: {error.error_message}") from error
        except QMPError as error:
            raise QmpError(f"{self.name}: {command}: {error}") from error


def _no_session(name: str, address: Address) -> str:
    where = described(address)
    return (
        f"no QMP session on {where}"
        if name in (where, "")
        else f"{name}: no QMP session on {where}"
    )


def _no_such_monitor(message: str, hint: str) -> ConnectError:
    """An error for what whoever named the address can see to be wrong."""
    error = ConnectError(message, hint=hint)
    error.exit_status = ExitStatus.USAGE
    return error


def _require_utf8(what: str, value: object) -> None:
    """Refuse text that is no UTF-8, such as a file's name: QEMU would give up the connection."""
    match value:
        case str():
            try:
                value.encode()
            except UnicodeEncodeError:
                raise UsageError(
                    f"{what}: {value!a} is not UTF-8, and QMP carries no other text",
                    hint="use a name in UTF-8",
                ) from None
        case Mapping():
            for pair in value.items():
                _require_utf8(what, pair)
        case list() | tuple():
            for item in value:
                _require_utf8(what, item)


_adapter: Callable[[Any], TypeAdapter[Any]] = functools.cache(TypeAdapter)
"""Building an adapter costs far more than using it."""


def _fit(what: str, model: type[T], value: object) -> T:
    """Check a value from QEMU against the model."""
    try:
        return cast("T", _adapter(model).validate_python(value))
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        field = ".".join(map(str, first["loc"])) or "the value itself"
        got = repr(first["input"])[:80]
        raise ProtocolError(
            f"{what} does not fit: {field}: {first['msg']}, got {got}"
            + (f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else "")
        ) from error
