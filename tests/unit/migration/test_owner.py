"""Who owns a guest is found, answers, and can stop answering."""

from __future__ import annotations

import asyncio
import importlib
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from qemu_ring.errors import DeadlineError
from qemu_ring.machine import named_socket
from qemu_ring.migration.errors import MigrationError
from qemu_ring.migration.toggling.owner import GuestOwner, ToggleRequest, request_toggle

MODULE = importlib.import_module("qemu_ring.migration.toggling.owner")
REQUEST = ToggleRequest(tracking="bitmap")
LISTEN = "import socket, sys; socket.socket(fileno=int(sys.argv[1])).listen()"


@asynccontextmanager
async def owner(
    path: Path, monkeypatch: pytest.MonkeyPatch, toggle: Any
) -> AsyncIterator[GuestOwner]:
    async def nothing(*_: object) -> None:
        return None

    for name in ("probe_qemu", "twin_accelerator"):
        monkeypatch.setattr(MODULE, name, nothing)
    monkeypatch.setattr(MODULE, "probe_kvm", lambda: None)
    monkeypatch.setattr(MODULE, "toggle", toggle)
    machine: Any = object()
    async with named_socket(path) as listening:
        guest = GuestOwner(machine, Path("qemu"), [listening])
        guest._first, guest._busy = machine, asyncio.Lock()
        async with guest.serve():
            yield guest


async def test_found_again_after_a_twin_that_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The twin listens on the socket that it inherits, and the kernel then names it."""

    async def fails(*_: object, monitors: list[socket.socket], **__: object) -> None:
        number = monitors[0].fileno()
        await asyncio.to_thread(
            subprocess.run,
            [sys.executable, "-c", LISTEN, str(number)],
            pass_fds=[number],
            check=True,
        )
        raise MigrationError("it failed")

    path = tmp_path / "guest"
    async with owner(path, monkeypatch, fails):
        for _ in range(3):
            with pytest.raises(Exception, match="it failed"):
                await request_toggle(str(path), REQUEST)


async def test_no_answer_leaves_the_outcome_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cancelled = asyncio.Event()

    async def hangs(*_: object, **__: object) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()

    path = tmp_path / "guest"
    async with owner(path, monkeypatch, hangs):
        with pytest.raises(DeadlineError, match="or has moved it, is not known"):
            await request_toggle(str(path), REQUEST, timeout=0.2)
        assert not cancelled.is_set()
    assert cancelled.is_set()
