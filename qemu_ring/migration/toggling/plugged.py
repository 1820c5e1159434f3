"""What was plugged in or out after a guest's start, which its description does not know.

The twin is started with it. Virtual CPUs and DIMMs tell all about themselves; of any other device
the twin could only be given a likeness, as of its properties QEMU does not tell those that refer to
what is behind it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence, Set
from dataclasses import replace
from itertools import pairwise
from typing import Any

from qemu_ring.errors import UsageError
from qemu_ring.machine import Device, MachineDescription
from qemu_ring.qmp import CommandError, Monitor, commands

__all__ = ["with_plugged"]

_CONTAINERS = ("/machine/peripheral", "/machine/peripheral-anon")
_DIMM = "pc-dimm"
_FILE = "memory-backend-file"
_OF_FILES = ("size", "mem-path", "share", "merge", "dump", "align", "offset", "readonly", "pmem")
"""Properties of a memory backend that change what the guest has; not all versions have all."""
_IF_SET = frozenset({"align", "offset", "readonly", "pmem"})
"""Those that not every build takes, even where they change nothing."""


async def with_plugged(
    description: MachineDescription, monitor: Monitor, name: str
) -> MachineDescription:
    """A guest's description with all that was plugged in since it was started, or out.

    Only devices of the description that have an id are known to be gone.

    Args:
        description: what it was started from.
        monitor: the guest's.
        name: what messages call it.

    Raises:
        QmpError: as in `Monitor.call`.
        UsageError: something was plugged in that a twin could not be given.
    """
    present = await _devices(monitor)
    plugged = [
        (path, kind)
        for path, kind in present
        if await commands.qom_get(monitor, path, "hotplugged")
    ]
    left = [
        device
        for device in description.devices
        if "id" not in device.properties
        or f"{_CONTAINERS[0]}/{device.properties['id']}" in {path for path, _ in present}
    ]
    cpus: Any = await monitor.execute("query-hotpluggable-cpus") if plugged else []
    places = {cpu["qom-path"]: cpu["props"] for cpu in cpus if "qom-path" in cpu}
    devices, backends, others = [], [], []
    for path, kind in plugged:
        identity = {"id": path.rpartition("/")[2]} if path.startswith(f"{_CONTAINERS[0]}/") else {}
        if path in places:
            devices.append(Device(kind, {**identity, **places[path]}))
        elif kind == _DIMM:
            device, backend = await _dimm(monitor, path, name)
            devices.append(Device(kind, {**identity, **device}))
            backends.append(backend)
        else:
            others.append(f"{identity.get('id', 'one without an id')} ({kind})")
    if others:
        raise UsageError(
            f"{name} cannot be moved: its twin would lack what was plugged in after the start: "
            f"{', '.join(others)}",
            hint="unplug it, or describe it in the guest's file and start the guest with it",
        )
    listed: Any = await monitor.execute("qom-list", {"path": "/objects"})
    objects = {one["name"] for one in listed}
    extra = _without_gone(description.extra, objects)
    started = {b.id for b in (description.memory, *description.backends)} | _object_ids(extra)
    added = [
        argument
        for backend in backends
        if backend["id"] not in started
        for argument in ("-object", json.dumps(backend))
    ]
    return replace(description, devices=(*left, *devices), extra=(*extra, *added))


async def _devices(monitor: Monitor) -> list[tuple[str, str]]:
    """Path and type of all devices that are not the board's own."""
    found = []
    for container in _CONTAINERS:
        listed: Any = await monitor.execute("qom-list", {"path": container})
        found += [
            (f"{container}/{one['name']}", one["type"][len("child<") : -1])
            for one in listed
            if one["type"].startswith("child<")
        ]
    return found


async def _dimm(
    monitor: Monitor, path: str, name: str
) -> tuple[dict[str, str | int], dict[str, object]]:
    """A DIMM's properties, and its backend's."""
    device: dict[str, str | int] = {}
    for one in ("addr", "slot", "node"):
        value = await commands.qom_get(monitor, path, one)
        assert isinstance(value, int)
        device[one] = value
    backend = str(await commands.qom_get(monitor, path, "memdev"))
    device["memdev"] = backend.rpartition("/")[2]
    kind = await commands.qom_get(monitor, backend, "type")
    if kind != _FILE or not await commands.qom_get(monitor, backend, "share"):
        raise UsageError(
            f"{name} cannot be moved: memory {device['memdev']}, which was plugged in after the "
            "start, is no shared file: it would have to be copied",
            hint="unplug it, or plug in a memory-backend-file with share=on",
        )
    properties: dict[str, object] = {"qom-type": kind, "id": device["memdev"]}
    for one in _OF_FILES:
        try:
            value = await commands.qom_get(monitor, backend, one)
        except CommandError:
            continue
        if value or one not in _IF_SET:
            properties[one] = value
    return device, properties


def _without_gone(arguments: Sequence[str], objects: Set[str]) -> tuple[str, ...]:
    """A command line without objects that there are no more."""
    gone = {
        at
        for at, (option, value) in enumerate(pairwise(arguments))
        if option == "-object" and not _object_ids((option, value)) <= objects
    }
    return tuple(one for at, one in enumerate(arguments) if not {at, at - 1} & gone)


def _object_ids(arguments: Sequence[str]) -> set[str]:
    """The ids of objects that a command line has."""
    found = set()
    for option, value in pairwise(arguments):
        if option != "-object":
            continue
        if value.startswith("{"):
            found.add(json.loads(value).get("id", ""))
        else:
            found |= {part[3:] for part in value.split(",") if part.startswith("id=")}
    return found
