"""Serving metrics over HTTP."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from qemu_ring.errors import HostError, UsageError

if TYPE_CHECKING:
    from socketserver import BaseServer
    from threading import Thread

    from qemu_ring.observe.metrics import GuestsCollector

__all__ = ["metrics_server", "parse_listen_address"]


def parse_listen_address(text: str) -> tuple[str, int]:
    """Read `[HOST]:PORT`; without a host it is all of this machine's addresses.

    Raises:
        UsageError: it is none.
    """
    host, separator, port = text.rpartition(":")
    is_bracketed = host.startswith("[") and host.endswith("]")
    if not separator or not port.isdecimal() or int(port) > 65535:
        raise _no_address(text)
    if ":" in host and not is_bracketed:
        raise _no_address(text)
    return host.strip("[]") or "0.0.0.0", int(port)  # noqa: S104 - as its users expect of :PORT


def _no_address(text: str) -> UsageError:
    return UsageError(
        f"{text!r} is no address to listen at", hint="use such as :9469 or 127.0.0.1:9469"
    )


@asynccontextmanager
async def metrics_server(at: str) -> AsyncIterator[tuple[GuestsCollector, str]]:
    """Serve metrics at `[HOST]:PORT` from threads of its own.

    Yields:
        where samples go, and the URL.

    Raises:
        UsageError: nothing can listen there.
        HostError: what the extra `metrics` installs is missing.
    """
    host, port = parse_listen_address(at)
    try:
        from prometheus_client import CollectorRegistry, start_http_server

        from qemu_ring.observe.metrics import GuestsCollector
    except ImportError as error:
        raise HostError(
            f"{error.name} is not installed", hint="run: pip install 'qemu-ring[metrics]'"
        ) from error
    collector, registry = GuestsCollector(), CollectorRegistry()
    registry.register(collector)
    try:
        # In a thread, because it may ask for this host's name.
        server, thread = await asyncio.to_thread(start_http_server, port, host, registry)
    except OSError as error:
        raise UsageError(
            f"nothing can listen at {at}: {error.strerror or error}", hint="name another port"
        ) from error
    shown = f"[{host}]" if ":" in host else host
    try:
        yield collector, f"http://{shown}:{server.server_port}/metrics"
    finally:
        await asyncio.shield(asyncio.to_thread(_stop, server, thread))


def _stop(server: BaseServer, thread: Thread) -> None:
    server.shutdown()
    server.server_close()
    thread.join()
