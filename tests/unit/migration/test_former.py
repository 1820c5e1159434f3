"""What was set in a QEMU before, noted in that QEMU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

import pytest

from qemu_ring.errors import UsageError
from qemu_ring.migration.engine.previous_settings import TLS_ID, Controller
from tests.processes import killed_if_it_fails
from tests.unit.migration.conftest import refusal
from tests.waiting import DEADLINE

if TYPE_CHECKING:
    from tests.unit.migration.conftest import FakeQemu, Fakes


def with_objects(fake: FakeQemu) -> dict[str, Any]:
    """Have it hold objects; returns them, by id."""
    objects: dict[str, Any] = {}

    def add(arguments: Any) -> Any:
        if arguments["id"] in objects:
            return refusal("attempt to add duplicate property")
        objects[arguments["id"]] = arguments
        return {}

    def remove(arguments: Any) -> Any:
        return {} if objects.pop(arguments["id"], None) else refusal("not found")

    def read(arguments: Any) -> Any:
        found = objects.get(arguments["path"].removeprefix("/objects/"))
        return found["data"] if found else refusal("not found")

    replies: dict[str, Callable[[Any], Any]] = {
        "object-add": add,
        "object-del": remove,
        "qom-get": read,
    }
    fake.replies |= replies
    return objects


def note(controller: Controller, **former: object) -> dict[str, object]:
    return {"data": json.dumps({"controller": asdict(controller), "running": True, **former})}


GONE = replace(Controller.of(os.getpid()), process=1, began=1)


async def test_note_is_there_as_long_as_settings_are_changed(fakes: Fakes) -> None:
    objects = with_objects(fakes.source)
    before = fakes.settings()
    async with fakes.migration() as migration:
        noted = json.loads(objects["qemu-ring-settings"]["data"])
        assert (noted["capabilities"], noted["parameters"]) == before[0]
        assert noted["controller"] == asdict(Controller.of(os.getpid()))
        fakes.source.status("setup", "active")
        fakes.arrive()
        await migration.complete(timeout=DEADLINE)
    assert objects == {}
    assert fakes.settings() == before


async def test_what_is_left_is_put_back(fakes: Fakes) -> None:
    objects = with_objects(fakes.source)
    fakes.source.parameters["tls-creds"] = ""
    before = fakes.settings()
    objects["qemu-ring-settings"] = note(
        GONE, capabilities=dict(before[0][0]), parameters=dict(before[0][1])
    )
    objects[TLS_ID] = {}
    fakes.source.capabilities["multifd"] = True
    fakes.source.parameters |= {"tls-creds": TLS_ID, "max-bandwidth": 1}
    async with fakes.migration() as migration:
        assert fakes.source.parameters["tls-creds"] == ""
        assert TLS_ID not in objects
        fakes.source.status("setup", "active")
        fakes.arrive()
        await migration.complete(timeout=DEADLINE)
    assert fakes.settings() == before
    assert objects == {}


async def test_certificates_without_a_note(fakes: Fakes) -> None:
    objects = with_objects(fakes.source)
    objects[TLS_ID] = {}
    fakes.source.parameters["tls-creds"] = TLS_ID
    async with fakes.migration():
        assert fakes.source.parameters["tls-creds"] == ""
        assert TLS_ID not in objects


@pytest.fixture
def other() -> Iterator[subprocess.Popen[bytes]]:
    """Another process that lives."""
    with killed_if_it_fails(
        subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    ) as process:
        yield process
        process.kill()


async def test_controller_that_lives_is_not_disturbed(
    fakes: Fakes, other: subprocess.Popen[bytes]
) -> None:
    objects = with_objects(fakes.source)
    lives = Controller.of(other.pid)
    objects["qemu-ring-settings"] = left = note(lives, capabilities={}, parameters={})
    with pytest.raises(UsageError, match=f"process {other.pid}, is at work on the source"):
        async with fakes.migration():
            pass
    assert objects == {"qemu-ring-settings": left}
    assert fakes.source.count("migrate-set-capabilities") == 0
    other.kill()
    other.wait(timeout=DEADLINE)
    assert not lives.is_another_that_lives
    assert not Controller.of(os.getpid()).is_another_that_lives


@pytest.mark.parametrize("text", ["", "{}", "[1]", '{"controller": {"pid": 1}}'])
async def test_note_of_somebody_else(fakes: Fakes, text: str) -> None:
    objects = with_objects(fakes.source)
    objects["qemu-ring-settings"] = {"data": text}
    before = fakes.settings()
    async with fakes.migration() as migration:
        fakes.source.status("setup", "active")
        fakes.arrive()
        await migration.complete(timeout=DEADLINE)
    assert fakes.settings() == before
