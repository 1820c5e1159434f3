"""A QEMU whose monitor says what a test wants, on a socket pair."""

from __future__ import annotations

import asyncio
import json
import socket
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import pytest

from qemu_ring.machine import Life, Machine
from qemu_ring.migration import Migration, MigrationPlan, Unix
from qemu_ring.qmp import Monitor
from tests.waiting import DEADLINE

GREETING = {
    "QMP": {"version": {"qemu": {"micro": 0, "minor": 0, "major": 10}, "package": ""}}
    | {"capabilities": ["oob"]}
}
CAPABILITIES = (
    "events",
    "return-path",
    "multifd",
    "xbzrle",
    "late-block-activate",
    "postcopy-ram",
    "pause-before-switchover",
)
PLAN = MigrationPlan(channel=Unix(), max_bandwidth=100)


def enum(name: str, *values: str) -> dict[str, Any]:
    return {"name": name, "meta-type": "enum", "values": values, "members": []}


SCHEMA = [
    {"name": "migrate-set-parameters", "meta-type": "command", "arg-type": "0", "ret-type": "1"},
    {
        "name": "0",
        "meta-type": "object",
        "members": [
            {"name": "max-bandwidth", "type": "int"},
            {"name": "multifd-channels", "type": "int"},
            {"name": "multifd-compression", "type": "2"},
        ],
    },
    {"name": "1", "meta-type": "object", "members": []},
    enum("2", "none", "zlib"),
]


class FakeQemu:
    """Answers what a migration asks; `replies` overrides, by command."""

    def __init__(self, state: str = "running") -> None:
        self.asked: list[tuple[str, Any]] = []
        self.capabilities = dict.fromkeys(CAPABILITIES, False)
        self.parameters: dict[str, Any] = {
            "max-bandwidth": 7,
            "multifd-channels": 2,
            "multifd-compression": "none",
        }
        self.migration: dict[str, Any] = {}
        self.state = state
        self.replies: dict[str, Callable[[Any], Any]] = {}
        self.life = Life.RUNS
        self.task: asyncio.Task[None] | None = None
        self._writer: asyncio.StreamWriter

    async def start(self, ends: tuple[socket.socket, socket.socket]) -> socket.socket:
        ours, theirs = ends
        reader, self._writer = await asyncio.open_connection(sock=theirs)
        self.task = asyncio.create_task(self._serve(reader))
        return ours

    async def stop(self) -> None:
        self.go_away()
        if self.task is not None:
            await asyncio.wait({self.task}, timeout=DEADLINE)

    def event(self, name: str, **data: object) -> None:
        stamp = {"seconds": 1_700_000_000, "microseconds": 0}
        self._send({"event": name, "data": data, "timestamp": stamp})

    def status(self, *statuses: str) -> None:
        for status in statuses:
            self.migration = {"status": status}
            self.event("MIGRATION", status=status)

    def silently(self, status: str) -> None:
        """Be in a state that no event has told of yet."""
        self.migration = {"status": status}

    def go_away(self, life: Life = Life.ENDED) -> None:
        self.life = life
        self._writer.close()

    def _send(self, message: object) -> None:
        self._writer.write(json.dumps(message).encode() + b"\r\n")

    async def _serve(self, reader: asyncio.StreamReader) -> None:
        self._send(GREETING)
        text = ""
        while data := await reader.read(1 << 16):
            text = (text + data.decode()).lstrip()
            while text:
                try:
                    request, end = json.JSONDecoder().raw_decode(text)
                except json.JSONDecodeError:
                    break
                text = text[end:].lstrip()
                self._answer(request)

    def _answer(self, request: dict[str, Any]) -> None:
        name = request.get("execute") or request["exec-oob"]
        arguments: Any = request.get("arguments")
        self.asked.append((name, arguments))
        reply = self.replies[name](arguments) if name in self.replies else self._reply(name)
        if reply is None:
            return
        key = "error" if isinstance(reply, dict) and "class" in reply else "return"
        self._send({key: reply, "id": request.get("id")})
        if name == "migrate-set-capabilities" and key == "return":
            for one in arguments["capabilities"]:
                self.capabilities[one["capability"]] = one["state"]
        elif name == "migrate-set-parameters" and key == "return":
            self.parameters |= arguments

    def _reply(self, name: str) -> Any:
        match name:
            case "cont" if self.state != "inmigrate":
                self.state = "running"
                self.event("RESUME")
            case "query-migrate-capabilities":
                return [{"capability": c, "state": s} for c, s in self.capabilities.items()]
            case "query-migrate-parameters":
                return self.parameters
            case "query-qmp-schema":
                return SCHEMA
            case "query-cpus-fast":
                return []
            case "query-status":
                return {"status": self.state, "running": self.state == "running"}
            case "query-migrate":
                return self.migration
            case "query-named-block-nodes" | "query-fdsets" | "query-cpus-fast" | "qom-list":
                return []
            case "query-kvm":
                return {"enabled": True, "present": True}
            case "human-monitor-command":
                return ""
            case "qom-get":
                return refusal("there is no such property")
        return {}

    def count(self, name: str) -> int:
        return sum(one == name for one, _ in self.asked)


async def until(predicate: Callable[[], bool]) -> None:
    """Wait until it is so."""
    deadline = time.monotonic() + DEADLINE
    while not predicate():
        assert time.monotonic() < deadline
        await asyncio.sleep(0)


def refusal(text: str) -> dict[str, str]:
    return {"class": "GenericError", "desc": text}


class FakeMachine(Machine):
    """A machine of which it is known whether its QEMU, a made-up one, has ended."""

    def __init__(self, name: str, monitor: Monitor, fake: FakeQemu) -> None:
        super().__init__(name, monitor)
        self._fake = fake

    @property
    def life(self) -> Life:
        return self._fake.life

    async def has_ended(self) -> bool:
        return self.life is Life.ENDED


@dataclass
class Fakes:
    """A source that runs, a destination that waits, and both as this package sees them."""

    source: FakeQemu
    destination: FakeQemu
    first: Machine
    second: Machine

    def migration(self, plan: MigrationPlan = PLAN, **more: Any) -> Migration:
        return Migration(self.first, self.second, plan, **more)

    def arrive(self) -> None:
        """Have both sides complete it."""
        self.source.state, self.destination.state = "postmigrate", "paused"
        self.destination.status("completed")
        self.source.status("completed")

    def settings(self) -> list[tuple[dict[str, bool], dict[str, Any]]]:
        sides = (self.source, self.destination)
        return [(dict(one.capabilities), dict(one.parameters)) for one in sides]


@asynccontextmanager
async def both(
    socketpair: Callable[[], tuple[socket.socket, socket.socket]],
) -> AsyncIterator[Fakes]:
    source, destination = FakeQemu(), FakeQemu("inmigrate")
    made = []
    for name, fake in (("source", source), ("destination", destination)):
        monitor = await Monitor.connect(await fake.start(socketpair()), name=name)
        made.append(FakeMachine(name, monitor, fake))
    yield Fakes(source, destination, *made)
    for machine in made:
        await machine.close()
    await source.stop()
    await destination.stop()


@pytest.fixture
async def fakes() -> AsyncIterator[Fakes]:
    async with both(socket.socketpair) as made:
        yield made


@pytest.fixture
async def fake_by_tcp() -> AsyncIterator[Fakes]:
    """Both with monitors on TCP."""

    def socketpair() -> tuple[socket.socket, socket.socket]:
        with socket.create_server(("127.0.0.1", 0)) as server:
            ours = socket.create_connection(server.getsockname())
            return ours, server.accept()[0]

    async with both(socketpair) as made:
        yield made


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A destination made up here does not end by itself."""
    for name in ("_LATE_SECONDS", "_NOTICE_SECONDS"):
        monkeypatch.setattr(f"qemu_ring.migration.engine.outcome.{name}", 0.02)
