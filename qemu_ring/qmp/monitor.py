"""One connection to one QEMU's QMP monitor."""

from __future__ import annotations

import asyncio
import errno
import functools
import socket
from asyncio.trsock import TransportSocket
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar, cast

from pydantic import TypeAdapter, ValidationError
from qemu.qmp import ConnectError as LibraryConnectError
from qemu.qmp import ExecInterruptedError, ExecuteError, QMPError, Runstate, StateError
from qemu.qmp.qmp_client import BadReplyError

from qemu_ring._compat import timeout as deadline
from qemu_ring._settled import settled
from qemu_ring.errors import ExitStatus, UsageError
from qemu_ring.qmp._client import Cause, Client, explain
from qemu_ring.qmp.address import Address, described, unix_name, wrong_address
from qemu_ring.qmp.errors import (
    CommandError,
    CommandTimeoutError,
    ConnectError,
    DisconnectedError,
    ProtocolError,
    QmpError,
)
from qemu_ring.qmp.events import EventHub, Listener
from qemu_ring.qmp.models import AddedFd, VersionInfo
from qemu_ring.qmp.patience import answer_timeout
from qemu_ring.qmp.schema import Schema

__all__ = ["Address", "Monitor"]

T = TypeVar("T")


class Monitor:
    """A QMP session: commands, events, and one clear end.

    Made by `connect`; use it as an async context manager, or call `close`. QEMU serves one
    client per monitor socket. Any number of tasks may use one Monitor at once.

    Attributes:
        name: names this connection in messages and logs.
        version: QEMU's major, minor and micro version.
        package: the distribution's name for its package; may be empty.
        answer_timeout: how long a command may take whose caller does not say, in seconds; may
            be changed at any time.
    """

    # Life cycle: one task, _session, connects, waits for the end of the connection, and calls
    # the library's disconnect(). Nobody else does, because that call may run only once and must
    # not be cancelled half-way; and it must run even if nobody closes the monitor, because it
    # is what retrieves the exceptions of the library's tasks.

    def __init__(self, name: str) -> None:
        self.name = name
        self.answer_timeout = answer_timeout()
        self.version: tuple[int, int, int] = (0, 0, 0)
        self.package = ""
        self._client = Client(name)
        self._hub = EventHub(name, self._lost)
        self._client.events.event_filter = self._hub.dispatch
        self._up: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._session: asyncio.Task[None]
        self._closing = False
        self._cause: Cause | None = None
        self._fd_lock = asyncio.Lock()
        self._schema: Schema | None = None

    @classmethod
    async def connect(
        cls, address: Address, *, name: str = "qemu", timeout: float | None = None
    ) -> Monitor:
        """Connect, take QEMU's greeting and negotiate capabilities.

        Args:
            address: where the monitor is. A socket given belongs to the Monitor from here on,
                and is closed even if this fails.
            name: names this connection in messages and logs.
            timeout: the deadline for all of it, in seconds; None for `answer_timeout()`.

        Raises:
            ConnectError: nobody listens, the peer is no QMP server, or it did not answer in
                time; nothing is left running.
        """
        if wrong := wrong_address(address):
            why, hint = wrong
            raise _no_such_monitor(f"{_no_session(name, address)}: {why}", hint)
        monitor = cls(name)
        timeout = monitor.answer_timeout if timeout is None else timeout
        monitor._session = asyncio.create_task(monitor._run(address), name=f"qmp {name}")
        try:
            await asyncio.wait(
                {monitor._session, monitor._up},
                timeout=timeout,
                return_when=asyncio.FIRST_COMPLETED,
            )
            monitor._read_greeting(address, timeout)
        except BaseException:
            try:
                await monitor.close()
            finally:
                if isinstance(address, socket.socket):
                    address.close()
            raise
        return monitor

    async def close(self, *, timeout: float = 5.0) -> None:
        """End the session, whatever state the peer is in; may be called again.

        What was sent is flushed first; a peer that does not read for `timeout` seconds is cut
        off. Commands still waiting raise DisconnectedError. The peer can cause no error here,
        and no task is left behind, not even when this is cancelled.
        """
        self._closing = True
        if self._up.done():
            self._client.hang_up()
        else:
            self._session.cancel()
        timer = asyncio.get_running_loop().call_later(timeout, self._client.abort)
        try:
            await settled({self._session}, on_cancel=self._client.abort)
        finally:
            timer.cancel()

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
        return self._client.runstate is Runstate.RUNNING

    async def wait_disconnected(self) -> None:
        """Wait until the connection has ended, by whoever's doing; has no deadline of its own."""
        await asyncio.wait({self._session})

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
        async with self._answered(name, timeout):
            return await self._client.execute(name, arguments, oob=oob)

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
        client = self._client.transport
        return client is not None and client.family == socket.AF_UNIX

    @property
    def transport(self) -> TransportSocket | None:
        """The connection's socket, to ask about and not to use; None when it is gone."""
        return self._client.transport

    async def _send_fd(
        self, fd: int, command: str, arguments: Mapping[str, object], timeout: float | None
    ) -> object:
        # QEMU keeps only the newest descriptor it received, so it has to be named before the
        # next one is sent. It travels with a blank, which must not land within a message.
        async with self._answered(command, timeout), self._fd_lock:
            try:
                await self._client.flush()
                self._client.send_fd_scm(fd)
            except OSError as error:
                if not self.connected:
                    raise StateError("", self._client.runstate, Runstate.RUNNING) from error
                raise QmpError(f"{self.name}: cannot send fd {fd}: {error.strerror}") from error
            return await self._client.execute(command, arguments)

    def events(self, *names: str) -> Listener:
        """Listen for events; for all of them if none is named.

        ::

            with monitor.events("STOP") as events:
                await monitor.execute("stop")
                event = await events.wait(timeout=5)

        From the ``with`` on no event is missed.
        """
        return Listener(self._hub, names)

    async def schema(self) -> Schema:
        """Tell what this QEMU's QMP offers; asked of QEMU once.

        Raises:
            QmpError: as in `call`.
        """
        if self._schema is None:
            self._schema = await self.call("query-qmp-schema", Schema)
        return self._schema

    async def _run(self, address: Address) -> None:
        """Be the session, from connecting to the last cleanup."""
        client = self._client
        try:
            await client.connect(unix_name(address) if isinstance(address, str | Path) else address)
        except LibraryConnectError as error:
            self._cause = explain(error)
            return
        except AssertionError:
            # There was a session, but the peer left within the same turn of the loop, and the
            # library asserts that it is still running. It is owed its disconnect(), below.
            pass
        self._up.set_result(None)
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
                    self._cause = explain(error)
            self._hub.end()

    def _read_greeting(self, address: Address, timeout: float) -> None:
        """Take the version from the greeting, or tell why there is no session."""
        failed = _no_session(self.name, address)
        greeting = self._client.greeting
        step = "(its greeting)" if greeting is None else "(capabilities negotiation)"
        if not self._up.done():
            if self._cause is None:
                raise ConnectError(
                    f"{failed}: the peer did not answer within {timeout:g} s {step}",
                    hint="QEMU serves one client per monitor: another may hold it",
                )
            text, error = self._cause
            if isinstance(error, FileNotFoundError | NotADirectoryError):
                raise _no_such_monitor(f"{failed}: {text}", _hint(error)) from error
            if isinstance(error, OSError) and error.errno == errno.EINVAL:
                # asyncio takes a unix socket whose queue is full for connected.
                raise ConnectError(
                    f"{failed}: others wait for it already",
                    hint="QEMU serves one client per monitor: another holds it",
                )
            when = "" if isinstance(error, OSError) else f" {step}"
            raise ConnectError(f"{failed}: {text}{when}", hint=_hint(error)) from error
        assert greeting is not None
        try:
            info = _fit("the greeting's version", VersionInfo, greeting.QMP.version)
        except ProtocolError as misfit:
            raise ConnectError(f"{failed}: {misfit.message}") from misfit
        self.version, self.package = info.qemu.triple, info.package

    @asynccontextmanager
    async def _answered(self, command: str, timeout: float | None) -> AsyncIterator[None]:
        """Give a command its deadline, and the library's errors our own types."""
        timeout = self.answer_timeout if timeout is None else timeout
        clock = deadline(timeout)
        try:
            async with clock:
                try:
                    yield
                except (ExecInterruptedError, StateError):
                    await self.wait_disconnected()  # Then the cause is known.
                    raise
        except TimeoutError:
            if not clock.expired():
                raise
            raise CommandTimeoutError(self.name, command, timeout) from None
        except ExecInterruptedError:
            raise self._lost(f" during {command}, outcome unknown") from self._why
        except StateError:
            raise self._lost(f", {command} was not sent") from self._why
        except ExecuteError as error:
            raise CommandError(self.name, command, error.error_class, str(error)) from None
        except BadReplyError as error:
            raise ProtocolError(f"{self.name}: {command}: {error.error_message}") from error
        except QMPError as error:
            raise QmpError(f"{self.name}: {command}: {error}") from error

    @property
    def _why(self) -> BaseException | None:
        return self._cause.error if self._cause else None

    def _lost(self, during: str = "") -> DisconnectedError:
        """Make the error that tells why, and when, the connection went away."""
        text = self._cause.text if self._cause else "it was closed"
        error = DisconnectedError(
            f"{self.name}: monitor gone{during}: {text}", hint=_hint(self._why)
        )
        error.__cause__ = self._why
        return error


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


def _hint(error: BaseException | None) -> str:
    """Say what to do next about a connection that failed for this reason."""
    match error:
        case FileNotFoundError() | NotADirectoryError():
            return "is QEMU running, with -qmp unix:PATH,server=on,wait=off?"
        case ConnectionRefusedError():
            return "QEMU has ended, or listens elsewhere"
        case PermissionError():
            return "run as the user who started QEMU"
        case EOFError() | ConnectionError():
            return "see what QEMU wrote to its standard error"
        case ProtocolError():
            return "is it a QMP monitor (mode=control), and not a human one?"
    return ""
