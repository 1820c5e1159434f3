"""Schema: every kind of type, the forms of different QEMU versions, and large replies."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any

import pytest

from qemu_ring.qmp import DisconnectedError, Monitor, ProtocolError, Schema

if TYPE_CHECKING:
    from tests.unit.qmp.conftest import FakeQemu, Peer


def entity(name: str, kind: str, **fields: object) -> dict[str, object]:
    return {
        "name": name,
        "meta-type": kind,
        **{key.replace("_", "-"): value for key, value in fields.items()},
    }


def members(**types: str) -> list[dict[str, str]]:
    return [{"name": name.replace("_", "-"), "type": type_} for name, type_ in types.items()]


REPLY: list[dict[str, Any]] = [
    entity("migrate-set-capabilities", "command", arg_type="1", ret_type="0"),
    entity("migrate-set-parameters", "command", arg_type="5", ret_type="0", features=["unstable"]),
    entity("blockdev-add", "command", arg_type="8", ret_type="0"),
    entity("query-migrate", "command", arg_type="0", ret_type="20"),
    entity("STOP", "event", arg_type="0"),
    entity("0", "object", members=[]),
    entity("1", "object", members=members(capabilities="[2]")),
    entity("[2]", "array", element_type="2"),
    entity("2", "object", members=members(capability="3", state="bool")),
    entity("3", "enum", members=[{"name": "events"}, {"name": "dirty-limit"}]),
    entity("5", "object", members=[*members(max_bandwidth="int", multifd_compression="6")]),
    entity("6", "enum", values=["none", "zlib"]),  # as QEMU before 6.2 has it
    entity("7", "enum", values=["none"], members=[{"name": "none"}]),
    entity(
        "8",
        "object",
        members=members(driver="9", cache="11"),
        tag="driver",
        variants=[{"case": "qcow2", "type": "12"}, {"case": "null", "type": "0"}],
    ),
    entity("9", "enum", members=[{"name": "qcow2"}, {"name": "null"}]),
    entity("11", "alternate", members=[{"type": "str"}, {"type": "2"}, {"type": "[11]"}]),
    entity("[11]", "array", element_type="11"),
    entity("12", "object", members=members(file="13", overlap="7", gone="99")),
    entity("13", "alternate", members=[{"type": "8"}, {"type": "null"}]),
    entity("20", "object", members=members(status="str", ram="21")),
    entity("21", "object", members=members(mbps="number", total="int")),
    *(entity(name, "builtin", json_type=name) for name in ("str", "bool", "int", "null")),
]


@pytest.fixture(scope="module")
def schema() -> Schema:
    return Schema.model_validate(REPLY)


def test_commands_and_events(schema: Schema) -> None:
    assert schema.has_command("query-migrate")
    assert not schema.has_command("STOP")
    assert not schema.has_command("20")
    assert schema.has_event("STOP")
    assert not schema.has_event("query-migrate")


def test_command_arguments(schema: Schema) -> None:
    assert schema.command_arguments("migrate-set-parameters") == {
        "max-bandwidth",
        "multifd-compression",
    }
    assert schema.command_arguments("query-migrate") == set()
    assert schema.command_arguments("nonsense") == set()


def test_arguments_of_all_variants(schema: Schema) -> None:
    assert schema.command_arguments("blockdev-add") == {
        "driver",
        "cache",
        "file",
        "overlap",
        "gone",
    }


def test_nested_arguments(schema: Schema) -> None:
    nested = schema.command_arguments("migrate-set-capabilities", "capabilities")
    assert nested == {"capability", "state"}
    through_alternates = schema.command_arguments("blockdev-add", "file", "file", "cache")
    assert through_alternates == {"capability", "state"}
    assert schema.command_arguments("blockdev-add", "nonsense") == set()
    assert schema.command_arguments("blockdev-add", "gone") == set()


def test_command_returns(schema: Schema) -> None:
    assert schema.command_returns("query-migrate") == {"status", "ram"}
    assert schema.command_returns("query-migrate", "ram") == {"mbps", "total"}
    assert schema.command_returns("nonsense") == set()


def test_features(schema: Schema) -> None:
    assert schema.command_features("migrate-set-parameters") == {"unstable"}
    assert schema.command_features("blockdev-add") == set()
    assert schema.command_features("nonsense") == set()


@pytest.mark.parametrize(
    ("path", "values"),
    [
        (
            ("migrate-set-capabilities", "capabilities", "capability"),
            {"events", "dirty-limit"},
        ),
        (("migrate-set-parameters", "multifd-compression"), {"none", "zlib"}),
        (("blockdev-add", "driver"), {"qcow2", "null"}),
        (("blockdev-add", "overlap"), {"none"}),
        (("blockdev-add", "cache"), set()),
        (("blockdev-add",), set()),
        (("blockdev-add", "driver", "deeper"), set()),
        (("nonsense", "x"), set()),
    ],
)
def test_enum_values(schema: Schema, path: tuple[str, ...], values: set[str]) -> None:
    assert schema.enum_values(*path) == values


def realistic(size: int) -> list[dict[str, Any]]:
    """Add objects to REPLY until it has about `size` bytes."""
    fillers = (
        entity(
            str(number),
            "object",
            members=[{"name": f"member-{n}", "default": None, "type": "str"} for n in range(20)],
        )
        for number in range(1000, 1000 + size // 1150)
    )
    return [*REPLY, *fillers]


@pytest.mark.parametrize("size", [120_000, 1_000_000])
async def test_from_the_monitor_once(qemu: FakeQemu, size: int) -> None:
    async def script(peer: Peer) -> None:
        await peer.open()
        request = await peer.answer(realistic(size))
        assert request["execute"] == "query-qmp-schema"
        await peer.gone()

    async with await Monitor.connect(await qemu.pair(script)) as monitor:
        schema = await monitor.schema()
        assert schema.has_command("blockdev-add")
        assert await monitor.schema() is schema


async def test_over_the_line_limit(qemu: FakeQemu) -> None:
    async def script(peer: Peer) -> None:
        await peer.open()
        with suppress(ConnectionError):
            await peer.answer(realistic(12_000_000))

    async with await Monitor.connect(await qemu.pair(script)) as monitor:
        with pytest.raises(DisconnectedError, match="a line longer than 10,485,760 bytes"):
            await monitor.schema()


@pytest.mark.parametrize(
    ("reply", "field"),
    [
        ({}, "the value itself"),
        ([{"name": "x"}], "0.meta-type"),
        ([*REPLY, entity("x", "object", members=[{"name": 7}])], r"\d+.members.0.name"),
    ],
)
async def test_reply_that_is_no_schema(qemu: FakeQemu, reply: object, field: str) -> None:
    async def script(peer: Peer) -> None:
        await peer.open()
        await peer.answer(reply)
        await peer.answer(REPLY)
        await peer.gone()

    async with await Monitor.connect(await qemu.pair(script)) as monitor:
        with pytest.raises(ProtocolError, match=f"query-qmp-schema does not fit: {field}"):
            await monitor.schema()
        assert (await monitor.schema()).has_event("STOP")
