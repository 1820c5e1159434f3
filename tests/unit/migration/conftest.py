"""A QEMU whose monitor says what a test wants, on a socket pair."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Callable
from typing import Any

import pytest

GREETING = {
    "QMP": {"version": {"qemu": {"micro": 0, "minor": 0, "major": 10}, "package": ""}}
    | {"capabilities": ["oob"]}
}
CAPABILITIES = ("events", "return-path", "multifd", "xbzrle")


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
        self.task: asyncio.Task[None] | None = None
        self._writer: asyncio.StreamWriter

    async def start(self) -> socket.socket:
        ours, theirs = socket.socketpair()
        reader, self._writer = await asyncio.open_connection(sock=theirs)
        self.task = asyncio.create_task(self._serve(reader))
        return ours

    async def stop(self) -> None:
        self._writer.close()
        if self.task is not None:
            await asyncio.wait({self.task}, timeout=5)

    def event(self, name: str, **data: object) -> None:
        stamp = {"seconds": 1_700_000_000, "microseconds": 0}
        self._send({"event": name, "data": data, "timestamp": stamp})

    def status(self, status: str) -> None:
        self.migration = {"status": status}
        self.event("MIGRATION", status=status)

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
            case "query-migrate-capabilities":
                return [{"capability": c, "state": s} for c, s in self.capabilities.items()]
            case "query-migrate-parameters":
                return self.parameters
            case "query-qmp-schema":
                return SCHEMA
            case "query-status":
                return {"status": self.state, "running": self.state == "running"}
            case "query-migrate":
                return self.migration
        return {}

    def count(self, name: str) -> int:
        return sum(one == name for one, _ in self.asked)


@pytest.fixture
def fake_qemu() -> type[FakeQemu]:
    return FakeQemu


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A destination made up here does not end by itself."""
    for name in ("_LATE_SECONDS", "_NOTICE_SECONDS"):
        monkeypatch.setattr(f"qemu_ring.migration.aftermath.{name}", 0.02)
