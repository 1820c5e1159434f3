"""What a migration's bytes go through, and the URIs that the two QEMUs know it by."""

from __future__ import annotations

import os
import secrets
import socket
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from qemu_ring.errors import QemuUnsuitableError, UsageError
from qemu_ring.machine import Leftovers
from qemu_ring.migration.channels.fdset import PassedFiles, open_file
from qemu_ring.migration.channels.passed_fds import PassedFds
from qemu_ring.migration.channels.shared_folder import LONGEST_SOCKET_PATH, SharedFolder
from qemu_ring.migration.errors import MigrationError
from qemu_ring.qmp import Monitor, commands

__all__ = [
    "STREAM_MAGIC",
    "AbstractUnix",
    "Channel",
    "Connection",
    "Exec",
    "Fd",
    "File",
    "Tcp",
    "Unix",
    "local_channel",
]

STREAM_MAGIC = b"QEVM"
"""What every stream of a QEMU begins with."""


class Connection:
    """One use of a channel, with what it makes on this host; `close` removes that.

    Args:
        source: its monitor.
        destination: its monitor; None if the channel only saves, or the source if it only loads.
    """

    def __init__(self, source: Monitor | None, destination: Monitor | None) -> None:
        self.source = source
        self.destination = destination

    async def listen(self) -> str:
        """Make ready for the destination, and tell the URI to listen on."""
        raise NotImplementedError

    async def reach(self) -> str:
        """Make ready for the source, once the destination listens; tell the URI to connect to."""
        raise NotImplementedError

    def established(self) -> None:
        """Remove the way in, as soon as all is connected."""

    def cut_off(self) -> None:
        """Keep who reads it from taking what comes now for its end: it is to be cancelled."""

    async def abandon(self) -> None:
        """Take back what the QEMUs were given, and did not come to use."""

    async def finish(self) -> None:
        """Give what a completed migration leaves on purpose its place; may be called again.

        Raises:
            MigrationError: it cannot be there; says where it is, unless it `is_lost`.
        """

    @property
    def is_lost(self) -> bool:
        """Whether a guest that was saved would be lost with its source's QEMU, as things are."""
        return False

    async def reason(self) -> str:
        """Why it failed, as far as this knows, to follow what QEMU says; "" if it does not."""
        return ""

    def close(self, completed: bool) -> None:  # noqa: ARG002 - for those that leave a file
        """Remove what was made; keep what a completed migration leaves on purpose."""
        self.established()


class Channel(ABC):
    """A kind of channel and its address; `connect` makes one use of it."""

    __slots__ = ()
    bidirectional: ClassVar[bool] = True
    """Whether the destination can answer the source."""
    multiple: ClassVar[bool] = True
    """Whether it can be connected to more than once, as multifd does."""
    has_host: ClassVar[bool] = False
    """Whether its address has a host, whose name TLS can check."""

    @abstractmethod
    def connect(self, source: Monitor | None, destination: Monitor | None) -> Connection:
        """Begin one use of it, between these monitors."""

    @property
    @abstractmethod
    def words(self) -> str:
        """In the words of the command line, such as tcp:127.0.0.1:0."""


@dataclass(frozen=True, slots=True)
class Unix(Channel):
    """A unix socket.

    Args:
        path: where the destination makes it; None for one in a folder of our own that both
            sides can use, which is removed when both are connected.
    """

    path: Path | None = None

    @property
    def words(self) -> str:
        """As on the command line."""
        return "unix" if self.path is None else f"unix:{self.path}"

    def connect(self, source: Monitor | None, destination: Monitor | None) -> Connection:
        """Begin one use of it, between these monitors."""
        if self.path is None:
            return _OwnUnixConnection(source, destination)
        return _UnixConnection(self.path, source, destination)


class _UnixConnection(Connection):
    def __init__(self, path: Path, source: Monitor | None, destination: Monitor | None) -> None:
        super().__init__(source, destination)
        if path.exists() and not path.is_socket():
            raise UsageError(f"{path} is there already, and no socket", hint="name another path")
        if len(os.fsencode(path)) > LONGEST_SOCKET_PATH:
            raise UsageError(
                f"{path} is too long for a socket's path: at most {LONGEST_SOCKET_PATH} bytes"
            )
        self._path = path
        self._leftovers = Leftovers(path)

    async def listen(self) -> str:
        return f"unix:{self._path}"

    async def reach(self) -> str:
        return f"unix:{self._path}"

    def established(self) -> None:
        self._leftovers.remove()

    def close(self, completed: bool) -> None:  # noqa: ARG002
        self._leftovers.close()


class _OwnUnixConnection(Connection):
    """By a socket in a folder of our own."""

    def __init__(self, source: Monitor | None, destination: Monitor | None) -> None:
        super().__init__(source, destination)
        self._folder = SharedFolder(source, destination, "migration.sock")

    async def listen(self) -> str:
        return f"unix:{await self._folder.make()}"

    async def reach(self) -> str:
        return f"unix:{self._folder.socket}"

    def established(self) -> None:
        self._folder.remove()

    def close(self, completed: bool) -> None:  # noqa: ARG002
        self._folder.close()


@dataclass(frozen=True, slots=True)
class AbstractUnix(Channel):
    """A unix socket without a file, which both sides see that are in one network namespace.

    Args:
        name: at most 107 bytes.

    Raises:
        UsageError: it is none, or too long.
    """

    name: str

    def __post_init__(self) -> None:
        if not 0 < len(os.fsencode(self.name)) <= LONGEST_SOCKET_PATH:
            raise UsageError(
                f"the name of a socket without a file has 1 to {LONGEST_SOCKET_PATH} bytes"
            )

    @property
    def words(self) -> str:
        """As on the command line."""
        return f"unix:@{self.name}"

    def connect(self, source: Monitor | None, destination: Monitor | None) -> Connection:
        """Begin one use of it, between these monitors."""
        return _AbstractConnection(self, source, destination)


class _AbstractConnection(Connection):
    def __init__(
        self, channel: AbstractUnix, source: Monitor | None, destination: Monitor | None
    ) -> None:
        super().__init__(source, destination)
        self._uri = channel.words

    async def listen(self) -> str:
        for monitor in (self.source, self.destination):
            if monitor is None:
                continue
            schema = await monitor.schema()
            if "channels" not in schema.command_arguments("migrate-incoming"):
                raise QemuUnsuitableError(
                    f"the {monitor.name} cannot migrate by a socket without a file",
                    hint="use fd, or unix with a path; QEMU 8.2 has it",
                )
        return self._uri

    async def reach(self) -> str:
        return self._uri


@dataclass(frozen=True, slots=True)
class Tcp(Channel):
    """A TCP connection.

    Args:
        host: the destination's name or address, as the source reaches it.
        port: 0 for any that is free at the destination.
        listen: the address that the destination listens on; None for `host`.
        listen_port: the port that it listens on, where something forwards `port` to it; None
            for `port`.
    """

    has_host: ClassVar[bool] = True
    host: str = "127.0.0.1"
    port: int = 0
    listen: str | None = None
    listen_port: int | None = None

    def __post_init__(self) -> None:
        for port in (self.port, self.listen_port or 0):
            if not 0 <= port < 1 << 16:
                raise UsageError(f"port {port} is not in 0 to 65535")
        if self.port == 0 and self.listen_port:
            raise UsageError("what is forwarded to another port is no port 0", hint="name it")

    @property
    def words(self) -> str:
        """As on the command line."""
        return f"tcp:{_bracketed(self.host)}:{self.port}"

    def connect(self, source: Monitor | None, destination: Monitor | None) -> Connection:
        """Begin one use of it, between these monitors."""
        return _TcpConnection(self, source, destination)


class _TcpConnection(Connection):
    def __init__(self, channel: Tcp, source: Monitor | None, destination: Monitor | None) -> None:
        super().__init__(source, destination)
        self._channel = channel

    async def listen(self) -> str:
        one = self._channel
        port = one.port if one.listen_port is None else one.listen_port
        return f"tcp:{_bracketed(one.listen or one.host)}:{port}"

    async def reach(self) -> str:
        port = str(self._channel.port)
        if port == "0":
            if self.destination is None:
                raise UsageError("a port of 0 needs a destination that tells what it took")
            listens = (await commands.query_migrate(self.destination)).socket_address
            port = next((address.port for address in listens if address.port), "")
            if not port:
                raise QemuUnsuitableError(
                    f"{self.destination.name} does not tell which port it took", hint="name a port"
                )
        return f"tcp:{_bracketed(self._channel.host)}:{port}"


@dataclass(frozen=True, slots=True)
class Fd(Channel):
    """A socket pair, given to both QEMUs through their monitors: no path, no port.

    Both monitors have to be unix sockets.
    """

    multiple: ClassVar[bool] = False

    @property
    def words(self) -> str:
        """As on the command line."""
        return "fd"

    def connect(self, source: Monitor | None, destination: Monitor | None) -> Connection:
        """Begin one use of it, between these monitors."""
        return _FdConnection(source, destination)


class _FdConnection(Connection):
    def __init__(self, source: Monitor | None, destination: Monitor | None) -> None:
        super().__init__(source, destination)
        self._ours, self._theirs = socket.socketpair()
        self._given = PassedFds()

    async def listen(self) -> str:
        # Both at once: if one side takes none, the other is not to have begun.
        with self._ours, self._theirs:
            await self._given.give(self.source, self._ours.fileno())
            return await self._given.give(self.destination, self._theirs.fileno())

    async def reach(self) -> str:
        return self._given.uri

    def established(self) -> None:
        self._given.forget()
        self._ours.close()
        self._theirs.close()

    async def abandon(self) -> None:
        await self._given.take_back()


@dataclass(frozen=True, slots=True)
class Exec(Channel):
    """Shell commands that QEMU runs: one that takes the stream, one that gives it.

    Args:
        source: run by the source; the migration is its standard input.
        destination: run by the destination; the migration is its standard output. None if
            the migration only saves.
    """

    bidirectional: ClassVar[bool] = False
    multiple: ClassVar[bool] = False
    source: str
    destination: str | None = None

    @property
    def words(self) -> str:
        """As on the command line."""
        return f"exec:{self.source}"

    def connect(self, source: Monitor | None, destination: Monitor | None) -> Connection:
        """Begin one use of it, between these monitors."""
        return _ExecConnection(self, source, destination)


class _ExecConnection(Connection):
    def __init__(self, channel: Exec, source: Monitor | None, destination: Monitor | None) -> None:
        super().__init__(source, destination)
        self._channel = channel

    async def listen(self) -> str:
        if self._channel.destination is None:
            raise UsageError("the destination needs a command", hint="Exec(..., destination=...)")
        return f"exec:{self._channel.destination}"

    async def reach(self) -> str:
        return f"exec:{self._channel.source}"


@dataclass(frozen=True, slots=True)
class File(Channel):
    """A file, on the host that runs QEMU and this.

    It is written under another name and gets its own when it is whole; one that is there
    already is replaced. QEMU gets it open, where its monitor is a unix socket: it may run as
    another user, and need not see the path.

    Args:
        path: the file.
    """

    bidirectional: ClassVar[bool] = False
    path: Path

    @property
    def words(self) -> str:
        """As on the command line."""
        return f"file:{self.path}"

    def connect(self, source: Monitor | None, destination: Monitor | None) -> Connection:
        """Begin one use of it, between these monitors."""
        return _FileConnection(self.path, source, destination)


class _FileConnection(Connection):
    def __init__(self, path: Path, source: Monitor | None, destination: Monitor | None) -> None:
        super().__init__(source, destination)
        self._path = path.absolute()
        self._partial: Path | None = None
        self._leftovers: Leftovers | None = None
        self._given = PassedFds(instead="")
        self._files = PassedFiles()
        if self._path.is_dir():
            raise UsageError(f"{self._path} is a directory", hint="name a file")

    async def listen(self) -> str:
        return await self._uri(self.destination, self._path, os.O_RDONLY)

    async def reach(self) -> str:
        partial = self._path.with_name(f".{self._path.name}.{secrets.token_hex(4)}")
        self._leftovers = Leftovers(partial)
        try:
            partial.touch(0o600, exist_ok=False)
        except OSError as error:
            raise UsageError(f"{self._path} cannot be written: {error.strerror}") from error
        self._partial = partial
        return await self._uri(self.source, self._partial, os.O_WRONLY)

    async def _uri(self, monitor: Monitor | None, path: Path, flags: int) -> str:
        assert monitor is not None
        schema = await monitor.schema()
        if "file" in schema.enum_values("migrate", "channels", "addr", "transport"):
            if monitor.takes_fds:
                return f"file:{await self._files.pass_file(monitor, path, flags)}"
            os.close(open_file(path, flags))
            return f"file:{path}"
        fd = open_file(path, flags)
        try:
            return await self._given.give(monitor, fd)
        finally:
            os.close(fd)

    def established(self) -> None:
        self._given.forget()

    async def abandon(self) -> None:
        await self._given.take_back()
        await self._files.take_back()

    async def finish(self) -> None:
        self._put_in_place()

    def _put_in_place(self) -> None:
        if self._partial is None:
            return
        partial, self._partial = self._partial, None
        try:
            partial.replace(self._path)
        except OSError as error:
            # Under its partial name it would be removed.
            kept = partial.with_name(partial.name.removeprefix("."))
            partial.replace(kept)
            raise MigrationError(
                f"the guest is saved, but {self._path} cannot be written: {error.strerror}",
                hint=f"it is in {kept}",
            ) from error

    def close(self, completed: bool) -> None:
        try:
            if completed:
                self._put_in_place()
        finally:
            if self._leftovers is not None:
                self._leftovers.close()


def local_channel(*, take_fds: bool, several: bool) -> Fd | Unix:
    """The channel between two QEMUs of this host where none was named.

    Args:
        take_fds: whether both monitors are unix sockets. Descriptors need nothing that both
            users may use, or both QEMUs see.
        several: whether more than one connection is needed.
    """
    return Fd() if take_fds and not several else Unix()


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host
