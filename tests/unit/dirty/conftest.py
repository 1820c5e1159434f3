"""A QEMU that answers from a table, where a real one cannot be made to say it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from qemu_ring.qmp import Monitor
from tests.unit.qmp.conftest import FakeQemu, Peer, nothing_left, qemu

__all__ = ["Answers", "Connect", "LastWords", "Refusal", "nothing_left", "qemu", "schema"]


class Refusal(str):
    """An answer that is an error with this description."""

    __slots__ = ()


class LastWords(dict[str, Any]):
    """An answer after which this QEMU is gone."""


Answers = dict[str, Any]
ONE_VCPU = {"cpu-index": 0, "thread-id": 1, "qom-path": "/vcpu"}
Connect = Callable[[Answers], Awaitable[tuple[Monitor, list[dict[str, Any]]]]]


def schema(*commands: str, **enums: dict[str, list[str]]) -> list[dict[str, Any]]:
    """The answer to query-qmp-schema: commands, and the arguments of some.

    `calc_dirty_rate={"mode": ["a", "b"]}` means: it has the argument mode, an enum of a and
    b, or no enum if there is nothing in the list.
    """
    entities: list[dict[str, Any]] = []
    for command, arguments in enums.items():
        name = command.replace("_", "-")
        members = [{"name": key, "type": f"{name}.{key}"} for key in arguments]
        entities += [
            {"meta-type": "object", "name": f"{name}-args", "members": members},
            {"meta-type": "command", "name": name, "arg-type": f"{name}-args", "ret-type": "0"},
        ]
        for key, values in arguments.items():
            kind = {"meta-type": "enum", "values": values} if values else {"meta-type": "builtin"}
            entities.append({"name": f"{name}.{key}", **kind})
    return entities + [
        {"meta-type": "command", "name": name, "arg-type": "0", "ret-type": "0"}
        for name in commands
    ]


@pytest.fixture
def connect(qemu: FakeQemu) -> Connect:
    """Connect to a QEMU that gives these answers; returns what it is asked, too.

    A list holds answers in turn, the last of which is given from then on.
    """

    async def connect(answers: Answers) -> tuple[Monitor, list[dict[str, Any]]]:
        known: Answers = {"query-cpus-fast": [[ONE_VCPU]], **answers}
        asked: list[dict[str, Any]] = []

        async def script(peer: Peer) -> None:
            await peer.open()
            while True:
                try:
                    request = await peer.command()
                except EOFError:
                    return
                name = request["execute"]
                asked.append({"execute": name, **request.get("arguments", {})})
                answer = known.get(name, Refusal(f"The command {name} has not been found"))
                if name != "query-qmp-schema" and isinstance(answer, list):
                    answer = answer.pop(0) if len(answer) > 1 else answer[0]
                if isinstance(answer, Refusal):
                    error = {"class": "GenericError", "desc": str(answer)}
                    await peer.send({"error": error, "id": request["id"]})
                    continue
                await peer.send({"return": answer, "id": request["id"]})
                if isinstance(answer, LastWords):
                    return

        return await Monitor.connect(await qemu.pair(script)), asked

    return connect
