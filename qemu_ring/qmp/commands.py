"""QMP commands with types: each takes the monitor first, and raises what `Monitor.call` raises.

`timeout` is in seconds everywhere; None for the monitor's `answer_timeout`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress

from qemu_ring.qmp.errors import DisconnectedError
from qemu_ring.qmp.models import (
    CapabilityState,
    CharDevice,
    CpuInfo,
    FdSet,
    KvmInfo,
    MemoryBackendInfo,
    MigrationInfo,
    MigrationStatus,
    PciBus,
    PropertyInfo,
    StatusInfo,
    VersionInfo,
)
from qemu_ring.qmp.monitor import Monitor

__all__ = [
    "cont",
    "device_list_properties",
    "human",
    "migrate",
    "migrate_cancel",
    "migrate_continue",
    "migrate_incoming",
    "migrate_pause",
    "migrate_recover",
    "migrate_start_postcopy",
    "object_add",
    "object_del",
    "qom_get",
    "qom_list_properties",
    "qom_set",
    "query_capabilities",
    "query_chardev",
    "query_cpus_fast",
    "query_fdsets",
    "query_kvm",
    "query_memdev",
    "query_migrate",
    "query_named_block_nodes",
    "query_parameters",
    "query_pci",
    "query_status",
    "query_version",
    "quit_",
    "remove_fd",
    "set_capabilities",
    "set_parameters",
    "stop",
    "trace_event_set_state",
]

# The machine


async def query_version(monitor: Monitor, *, timeout: float | None = None) -> VersionInfo:
    """Tell QEMU's version (which `Monitor.version` knows from the greeting, too)."""
    return await monitor.call("query-version", VersionInfo, timeout=timeout)


async def query_status(monitor: Monitor, *, timeout: float | None = None) -> StatusInfo:
    """Tell the run state."""
    return await monitor.call("query-status", StatusInfo, timeout=timeout)


async def query_kvm(monitor: Monitor, *, timeout: float | None = None) -> KvmInfo:
    """Tell whether KVM is in use."""
    return await monitor.call("query-kvm", KvmInfo, timeout=timeout)


async def query_cpus_fast(monitor: Monitor, *, timeout: float | None = None) -> list[CpuInfo]:
    """List the vCPUs, without disturbing them."""
    return await monitor.call("query-cpus-fast", list[CpuInfo], timeout=timeout)


async def stop(monitor: Monitor, *, timeout: float | None = None) -> None:
    """Stop all vCPUs; they have stopped when this returns."""
    await monitor.execute("stop", timeout=timeout)


async def cont(monitor: Monitor, *, timeout: float | None = None) -> None:
    """Let the vCPUs run."""
    await monitor.execute("cont", timeout=timeout)


async def quit_(monitor: Monitor, *, timeout: float | None = None) -> None:
    """Ask QEMU to end. That the connection closes meanwhile, or is closed, is no error."""
    with suppress(DisconnectedError):
        await monitor.execute("quit", timeout=timeout)


# Migration


async def query_migrate(monitor: Monitor, *, timeout: float | None = None) -> MigrationInfo:
    """Tell how the current or last migration fares."""
    return await monitor.call("query-migrate", MigrationInfo, timeout=timeout)


async def migrate(
    monitor: Monitor,
    uri: str | None = None,
    *,
    channels: Sequence[Mapping[str, object]] | None = None,
    resume: bool = False,
    timeout: float | None = None,
) -> None:
    """Begin to migrate; returns when it has begun, not when it has ended.

    Args:
        monitor: the source's.
        uri: where to, such as ``tcp:host:port``; ``unix:@NAME`` is a socket without a file (QEMU
            8.2 or newer).
        channels: instead of the URI, QAPI's MigrationChannel objects (QEMU 8.2 or newer).
        resume: go on with a postcopy migration that is paused.
        timeout: seconds.
    """
    arguments: dict[str, object] = {"channels": channels}
    if channels is None:
        arguments = _destination(uri)
    if resume:
        arguments["resume"] = True
    await monitor.execute("migrate", arguments, timeout=timeout)


def _destination(uri: str | None) -> dict[str, object]:
    """A URI as an argument; QEMU's own have no sockets without a file, which its channels have."""
    if uri is None or not uri.startswith("unix:@"):
        return {"uri": uri}
    name = uri.removeprefix("unix:@")
    address = {"transport": "socket", "type": "unix", "path": name, "abstract": True}
    return {"channels": [{"channel-type": "main", "addr": address}]}


async def migrate_cancel(monitor: Monitor, *, timeout: float | None = None) -> None:
    """Ask for the migration's end; it is cancelled when its status says so."""
    await monitor.execute("migrate_cancel", timeout=timeout)


async def migrate_incoming(
    monitor: Monitor,
    uri: str,
    *,
    exit_on_error: bool = True,
    timeout: float | None = None,
) -> None:
    """Listen on the URI, on a destination started with ``-incoming defer``.

    Args:
        monitor: the destination's.
        uri: where.
        exit_on_error: end QEMU when the migration fails; False needs QEMU 9.1.
        timeout: seconds.
    """
    arguments: dict[str, object] = _destination(uri)
    if not exit_on_error:
        arguments["exit-on-error"] = False
    await monitor.execute("migrate-incoming", arguments, timeout=timeout)


async def migrate_start_postcopy(monitor: Monitor, *, timeout: float | None = None) -> None:
    """Switch a migration with the capability postcopy-ram over to the destination."""
    await monitor.execute("migrate-start-postcopy", timeout=timeout)


async def migrate_continue(
    monitor: Monitor, state: MigrationStatus, *, timeout: float | None = None
) -> None:
    """Go on from the state in which the migration waits, such as pre-switchover."""
    await monitor.execute("migrate-continue", {"state": state.value}, timeout=timeout)


# A guest that misses a page may hold QEMU's main loop up, so these two go out of band.


async def migrate_pause(monitor: Monitor, *, timeout: float | None = None) -> None:
    """Give up the channel of a postcopy migration, so that it can be recovered on another."""
    await monitor.execute("migrate-pause", oob=True, timeout=timeout)


async def migrate_recover(monitor: Monitor, uri: str, *, timeout: float | None = None) -> None:
    """Listen on the URI, on the destination of a postcopy migration that is paused."""
    await monitor.execute("migrate-recover", {"uri": uri}, oob=True, timeout=timeout)


async def query_capabilities(monitor: Monitor, *, timeout: float | None = None) -> dict[str, bool]:
    """Tell of each migration capability this QEMU knows whether it is on."""
    listed = await monitor.call(
        "query-migrate-capabilities", list[CapabilityState], timeout=timeout
    )
    return {entry.capability: entry.state for entry in listed}


async def set_capabilities(
    monitor: Monitor, states: Mapping[str, bool], *, timeout: float | None = None
) -> None:
    """Turn migration capabilities on and off; those not named stay as they are."""
    listed = [{"capability": name, "state": state} for name, state in states.items()]
    await monitor.execute("migrate-set-capabilities", {"capabilities": listed}, timeout=timeout)


async def query_parameters(monitor: Monitor, *, timeout: float | None = None) -> dict[str, object]:
    """Tell the migration parameters, by QMP name."""
    return await monitor.call("query-migrate-parameters", dict[str, object], timeout=timeout)


async def set_parameters(
    monitor: Monitor, *, timeout: float | None = None, **parameters: object
) -> None:
    """Set migration parameters, underscores for dashes, as ``max_bandwidth=2**20`` (bytes/s)."""
    arguments = {name.replace("_", "-"): value for name, value in parameters.items()}
    await monitor.execute("migrate-set-parameters", arguments, timeout=timeout)


# Devices, objects and the rest


async def query_pci(monitor: Monitor, *, timeout: float | None = None) -> list[PciBus]:
    """List the PCI buses with their devices and BARs."""
    return await monitor.call("query-pci", list[PciBus], timeout=timeout)


async def query_memdev(
    monitor: Monitor, *, timeout: float | None = None
) -> list[MemoryBackendInfo]:
    """List the memory backends."""
    return await monitor.call("query-memdev", list[MemoryBackendInfo], timeout=timeout)


async def query_named_block_nodes(
    monitor: Monitor, *, timeout: float | None = None
) -> list[dict[str, object]]:
    """List the block nodes, as QEMU tells of them, without those behind them."""
    return await monitor.call(
        "query-named-block-nodes", list[dict[str, object]], {"flat": True}, timeout=timeout
    )


async def query_chardev(monitor: Monitor, *, timeout: float | None = None) -> list[CharDevice]:
    """List the character devices."""
    return await monitor.call("query-chardev", list[CharDevice], timeout=timeout)


async def qom_get(
    monitor: Monitor, path: str, name: str, *, timeout: float | None = None
) -> object:
    """Read the property `name` of the object at the QOM path."""
    return await monitor.execute("qom-get", {"path": path, "property": name}, timeout=timeout)


async def qom_set(
    monitor: Monitor, path: str, name: str, value: object, *, timeout: float | None = None
) -> None:
    """Write the property `name` of the object at the QOM path."""
    arguments = {"path": path, "property": name, "value": value}
    await monitor.execute("qom-set", arguments, timeout=timeout)


async def qom_list_properties(
    monitor: Monitor, typename: str, *, timeout: float | None = None
) -> list[PropertyInfo]:
    """List the properties of a QOM type."""
    arguments = {"typename": typename}
    return await monitor.call("qom-list-properties", list[PropertyInfo], arguments, timeout=timeout)


async def device_list_properties(
    monitor: Monitor, typename: str, *, timeout: float | None = None
) -> list[PropertyInfo]:
    """List the properties that ``-device TYPENAME`` takes."""
    arguments = {"typename": typename}
    return await monitor.call(
        "device-list-properties", list[PropertyInfo], arguments, timeout=timeout
    )


async def object_add(
    monitor: Monitor,
    qom_type: str,
    object_id: str,
    properties: Mapping[str, object] | None = None,
    *,
    timeout: float | None = None,
) -> None:
    """Make an object, as ``-object QOM_TYPE,id=OBJECT_ID`` does; properties by QMP name."""
    arguments = {"qom-type": qom_type, "id": object_id, **(properties or {})}
    await monitor.execute("object-add", arguments, timeout=timeout)


async def object_del(monitor: Monitor, object_id: str, *, timeout: float | None = None) -> None:
    """Remove an object."""
    await monitor.execute("object-del", {"id": object_id}, timeout=timeout)


async def query_fdsets(monitor: Monitor, *, timeout: float | None = None) -> list[FdSet]:
    """List the sets of descriptors that `Monitor.add_fd` made."""
    return await monitor.call("query-fdsets", list[FdSet], timeout=timeout)


async def remove_fd(monitor: Monitor, fdset: int, *, timeout: float | None = None) -> None:
    """Remove all descriptors of a set; what QEMU has opened by it stays open."""
    await monitor.execute("remove-fd", {"fdset-id": fdset}, timeout=timeout)


async def trace_event_set_state(
    monitor: Monitor,
    pattern: str,
    enable: bool,
    *,
    ignore_unavailable: bool = False,
    timeout: float | None = None,
) -> None:
    """Turn trace events on or off, by name or pattern (``kvm_*``)."""
    arguments = {"name": pattern, "enable": enable, "ignore-unavailable": ignore_unavailable}
    await monitor.execute("trace-event-set-state", arguments, timeout=timeout)


async def human(monitor: Monitor, command_line: str, *, timeout: float | None = None) -> str:
    """Run a human monitor command; what it prints, its errors included, is the result."""
    arguments = {"command-line": command_line}
    return await monitor.call("human-monitor-command", str, arguments, timeout=timeout)
