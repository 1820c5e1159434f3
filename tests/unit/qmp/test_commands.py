"""Typed commands: what goes over the wire, and what becomes of the answer."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

import pytest

from qemu_ring.qmp import DisconnectedError, Monitor, ProtocolError, commands
from qemu_ring.qmp.dirty import calc_dirty_rate
from qemu_ring.qmp.models import MigrationStatus, PropertyInfo, StatusInfo

if TYPE_CHECKING:
    from tests.unit.qmp.conftest import FakeQemu, Peer

Call = Callable[[Monitor], Awaitable[object]]
CASES: list[tuple[Call, str, dict[str, Any] | None, object, object]] = [
    (commands.stop, "stop", None, {}, None),
    (commands.cont, "cont", None, {}, None),
    (commands.quit_, "quit", None, {}, None),
    (
        commands.query_status,
        "query-status",
        None,
        {"status": "running", "running": True},
        StatusInfo(status="running", running=True),
    ),
    (lambda m: commands.migrate(m, "unix:x"), "migrate", {"uri": "unix:x"}, {}, None),
    (
        lambda m: commands.migrate(m, "unix:x", resume=True),
        "migrate",
        {"uri": "unix:x", "resume": True},
        {},
        None,
    ),
    (
        lambda m: commands.migrate(m, channels=[{"channel-type": "cpr"}]),
        "migrate",
        {"channels": [{"channel-type": "cpr"}]},
        {},
        None,
    ),
    (commands.migrate_cancel, "migrate_cancel", None, {}, None),
    (commands.migrate_start_postcopy, "migrate-start-postcopy", None, {}, None),
    (
        lambda m: commands.migrate_continue(m, MigrationStatus.PRE_SWITCHOVER),
        "migrate-continue",
        {"state": "pre-switchover"},
        {},
        None,
    ),
    (
        lambda m: commands.migrate_incoming(m, "unix:x", exit_on_error=False),
        "migrate-incoming",
        {"uri": "unix:x", "exit-on-error": False},
        {},
        None,
    ),
    (
        lambda m: commands.migrate_incoming(m, "unix:x"),
        "migrate-incoming",
        {"uri": "unix:x"},
        {},
        None,
    ),
    (
        commands.query_capabilities,
        "query-migrate-capabilities",
        None,
        [{"capability": "events", "state": True}, {"capability": "multifd", "state": False}],
        {"events": True, "multifd": False},
    ),
    (
        lambda m: commands.set_capabilities(m, {"events": True, "multifd": False}),
        "migrate-set-capabilities",
        {
            "capabilities": [
                {"capability": "events", "state": True},
                {"capability": "multifd", "state": False},
            ]
        },
        {},
        None,
    ),
    (
        commands.query_parameters,
        "query-migrate-parameters",
        None,
        {"max-bandwidth": 1, "tls-creds": ""},
        {"max-bandwidth": 1, "tls-creds": ""},
    ),
    (
        lambda m: commands.set_parameters(m, max_bandwidth=1 << 20, downtime_limit=1),
        "migrate-set-parameters",
        {"max-bandwidth": 1 << 20, "downtime-limit": 1},
        {},
        None,
    ),
    (
        lambda m: calc_dirty_rate(m, 1),
        "calc-dirty-rate",
        {"calc-time": 1},
        {},
        None,
    ),
    (
        lambda m: calc_dirty_rate(m, 2, mode="page-sampling", sample_pages=64),
        "calc-dirty-rate",
        {"calc-time": 2, "mode": "page-sampling", "sample-pages": 64},
        {},
        None,
    ),
    (
        lambda m: commands.qom_get(m, "/machine", "type"),
        "qom-get",
        {"path": "/machine", "property": "type"},
        "pc",
        "pc",
    ),
    (
        lambda m: commands.qom_set(m, "/objects/a", "share", True),
        "qom-set",
        {"path": "/objects/a", "property": "share", "value": True},
        {},
        None,
    ),
    (
        lambda m: commands.qom_list_properties(m, "pc"),
        "qom-list-properties",
        {"typename": "pc"},
        [{"name": "a", "type": "bool"}],
        [PropertyInfo(name="a", type="bool")],
    ),
    (
        lambda m: commands.device_list_properties(m, "edu"),
        "device-list-properties",
        {"typename": "edu"},
        [],
        [],
    ),
    (
        lambda m: commands.object_add(m, "memory-backend-file", "a", {"mem-path": "/x"}),
        "object-add",
        {"qom-type": "memory-backend-file", "id": "a", "mem-path": "/x"},
        {},
        None,
    ),
    (lambda m: commands.object_del(m, "a"), "object-del", {"id": "a"}, {}, None),
    (
        lambda m: commands.trace_event_set_state(m, "kvm_*", True, ignore_unavailable=True),
        "trace-event-set-state",
        {"name": "kvm_*", "enable": True, "ignore-unavailable": True},
        {},
        None,
    ),
    (
        lambda m: commands.human(m, "info status"),
        "human-monitor-command",
        {"command-line": "info status"},
        "VM status: running\r\n",
        "VM status: running\r\n",
    ),
]


@pytest.mark.parametrize(
    ("call", "command", "arguments", "reply", "result"), CASES, ids=[case[1] for case in CASES]
)
async def test_on_the_wire(
    qemu: FakeQemu,
    call: Call,
    command: str,
    arguments: dict[str, Any] | None,
    reply: object,
    result: object,
) -> None:
    async def script(peer: Peer) -> None:
        await peer.open()
        request = await peer.answer(reply)
        assert request["execute"] == command
        assert request.get("arguments") == arguments
        await peer.gone()

    async with await Monitor.connect(await qemu.pair(script)) as monitor:
        assert await call(monitor) == result


@pytest.mark.parametrize(
    ("call", "command", "arguments"),
    [
        (commands.migrate_pause, "migrate-pause", None),
        (lambda m: commands.migrate_recover(m, "unix:x"), "migrate-recover", {"uri": "unix:x"}),
    ],
)
async def test_out_of_band(
    qemu: FakeQemu, call: Call, command: str, arguments: dict[str, Any] | None
) -> None:
    async def script(peer: Peer) -> None:
        await peer.open()
        request = await peer.answer({})
        assert request["exec-oob"] == command
        assert request.get("arguments") == arguments
        await peer.gone()

    async with await Monitor.connect(await qemu.pair(script)) as monitor:
        await call(monitor)


async def test_quit_when_the_connection_closes_instead_of_an_answer(qemu: FakeQemu) -> None:
    async def script(peer: Peer) -> None:
        await peer.open()
        await peer.command()

    async with await Monitor.connect(await qemu.pair(script)) as monitor:
        await commands.quit_(monitor)
        await commands.quit_(monitor)
        with pytest.raises(DisconnectedError):
            await commands.stop(monitor)


async def test_misfit_names_command_and_field(qemu: FakeQemu) -> None:
    async def script(peer: Peer) -> None:
        await peer.open()
        await peer.answer({"status": "active", "ram": {"transferred": "much"}})
        await peer.answer([{"cpu-index": 0}])
        await peer.answer([{"capability": "events"}])
        await peer.gone()

    async with await Monitor.connect(await qemu.pair(script)) as monitor:
        with pytest.raises(ProtocolError, match=r"query-migrate does not fit: ram\.transferred"):
            await commands.query_migrate(monitor)
        with pytest.raises(ProtocolError, match=r"query-cpus-fast does not fit: 0\.thread-id"):
            await commands.query_cpus_fast(monitor)
        with pytest.raises(ProtocolError, match=r"capabilities does not fit: 0\.state"):
            await commands.query_capabilities(monitor)
