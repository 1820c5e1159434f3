"""What takes as long as it takes has no deadline of its own."""

from __future__ import annotations

import inspect
from collections.abc import Iterator

import pytest

import qemu_ring.migration
from qemu_ring.machine import Machine
from qemu_ring.qmp import Monitor, commands

BOUNDED = {
    "Monitor.close",  # what was sent is flushed; a peer that does not read is cut off
    "close",
    "Listener.wait",
    "Migration.cancel",  # QEMU ends it, or hangs
    "CprTransferMigration.cancel",
    "GuestDowntime.wait",  # a guest need not count
    "toggle",  # sends no memory; the guest goes on where it was
}


def timeouts(owner: object) -> Iterator[tuple[str, object]]:
    """The public functions and methods with a deadline, and its default."""
    for name, thing in vars(owner).items():
        if name.startswith("_"):
            continue
        if inspect.isclass(thing) and thing.__module__.startswith("qemu_ring."):
            for inner, default in timeouts(thing):
                yield f"{name}.{inner}", default
        elif callable(function := getattr(thing, "__func__", thing)):
            parameters = (
                inspect.signature(function).parameters if inspect.isroutine(function) else {}
            )
            if "timeout" in parameters:
                yield name, parameters["timeout"].default


@pytest.mark.parametrize("owner", [qemu_ring.migration, commands, Monitor, Machine])
def test_none_unless_asked_for(owner: object) -> None:
    found = dict(timeouts(owner))
    assert found
    hidden = {name for name, default in found.items() if default is not None}
    assert hidden <= BOUNDED
