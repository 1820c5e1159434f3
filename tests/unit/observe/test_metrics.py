"""Metrics of given samples: read by prometheus_client's own parser, and named as promtool wants."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families

from qemu_ring.cli.top.prometheus import metrics_server, parse_listen_address
from qemu_ring.errors import UsageError
from qemu_ring.observe.metrics import GuestsCollector
from qemu_ring.observe.snapshot import GuestSnapshot, Presence
from qemu_ring.qmp import MigrationStatus
from tests.unit.cli.test_top import GUEST, MIGRATION, SEEN, UNPATCHED

MIB = 1 << 20


ODD_UNITS = r"ms|milli\w*|minutes?|hours?|[kmgt]i?b|(kilo|mega|giga|[kmg][ie]bi)\w*|percent\w*|s|b"


def exposed(*snapshots: GuestSnapshot) -> str:
    collector, registry = GuestsCollector(), CollectorRegistry()
    registry.register(collector)
    collector.update(snapshots)
    return generate_latest(registry).decode()


def families(*snapshots: GuestSnapshot) -> dict[str, Metric]:
    return {one.name: one for one in text_string_to_metric_families(exposed(*snapshots))}


def value(found: dict[str, Metric], name: str, **labels: str) -> float:
    samples = [
        sample
        for family in found.values()
        for sample in family.samples
        if sample.name == name and labels.items() <= sample.labels.items()
    ]
    assert len(samples) == 1, (name, labels, samples)
    return samples[0].value


def lint(found: Sequence[Metric]) -> list[str]:
    """The rules of `promtool check metrics`, and those of Prometheus' page on naming."""
    wrong = []
    for metric in found:
        for sample in metric.samples:
            name = sample.name
            if not re.fullmatch(r"[a-z][a-z0-9_]*[a-z0-9]", name) or "__" in name:
                wrong.append(f"{name}: not in lower case and underscores")
            if not name.startswith("qemu_ring_"):
                wrong.append(f"{name}: not of this program")
            if (metric.type == "counter") != name.endswith("_total"):
                wrong.append(f"{name}: only counters end in _total, and all of them do")
            if name.endswith(("_count", "_sum", "_bucket")):
                wrong.append(f"{name}: as of a histogram")
            if name.endswith("_info") and sample.value != 1:
                wrong.append(f"{name}: is 1")
            if re.search(rf"_({ODD_UNITS})(_|$)", name):
                wrong.append(f"{name}: not in base units")
            if re.search(r"_(gauge|counter|metric)(_|$)", name):
                wrong.append(f"{name}: has its type in its name")
            if {"guest", "socket"} - sample.labels.keys():
                wrong.append(f"{name}: not by guest")
        if not metric.documentation.endswith("."):
            wrong.append(f"{metric.name}: no help")
    return wrong


COMPLETED = replace(
    SEEN,
    migration=replace(
        MIGRATION, status=MigrationStatus.COMPLETED, downtime=0.012, pages_absorbed=7
    ),
)


def test_names_are_as_the_field_has_them() -> None:
    found = list(text_string_to_metric_families(exposed(GUEST, replace(GUEST, state=COMPLETED))))
    assert len(found) > 30
    assert lint(found) == []


def test_lint_finds_what_is_wrong() -> None:
    text = "# HELP bad_ms x\n# TYPE bad_ms gauge\nbad_ms 1\n# TYPE a_total gauge\na_total 1\n"
    assert len(lint(list(text_string_to_metric_families(text)))) >= 7


def test_values() -> None:
    found = families(GUEST)
    guest = {"guest": "web", "socket": "/run/web.qmp"}
    assert value(found, "qemu_ring_guest_up", **guest) == 1
    assert value(found, "qemu_ring_guest_running", **guest) == 1
    about = {"version": "10.0.13", "patched": "true", "package": "Debian 1:10.0.13"}
    assert value(found, "qemu_ring_guest_qemu_info", **guest, **about) == 1
    assert value(found, "qemu_ring_dirty_ring_size_entries") == 4096
    assert value(found, "qemu_ring_dirty_ring_fill_entries", vcpu="1") == 4000
    assert value(found, "qemu_ring_dirty_ring_reaped_entries_total", vcpu="0") == 9_000_000
    assert value(found, "qemu_ring_dirty_ring_full_exits_total", vcpu="1") == 1234
    assert value(found, "qemu_ring_memslots", address_space="0") == 13
    assert value(found, "qemu_ring_memslots_logging_bytes") == 64 * MIB
    assert value(found, "qemu_ring_memslot_flush_removals_total", policy="quiesce") == 34_567
    assert value(found, "qemu_ring_memslot_flush_late_pages_total") == 12
    assert value(found, "qemu_ring_memslot_flush_hold_seconds_total") == 1.5
    assert value(found, "qemu_ring_memslot_flush_longest_hold_seconds") == 0.00052
    assert value(found, "qemu_ring_dirty_ring_dropped_entries_total") == 0
    assert value(found, "qemu_ring_dirty_rate_bytes_per_second", mode="page-sampling") == 12 * MIB
    assert value(found, "qemu_ring_dirty_rate_age_seconds") == 3.2
    assert value(found, "qemu_ring_migration_status", status="active") == 1
    assert value(found, "qemu_ring_migration_status", status="completed") == 0
    assert value(found, "qemu_ring_migration_remaining_bytes") == 12 * MIB
    assert value(found, "qemu_ring_migration_throttle_ratio") == 0.2
    assert "qemu_ring_migration_absorbed_pages" not in found, "this QEMU does not tell"
    assert value(found, "qemu_ring_migration_expected_downtime_seconds") == 12
    assert "qemu_ring_migration_last_downtime_seconds" not in found
    ended = families(replace(GUEST, state=COMPLETED))
    assert value(ended, "qemu_ring_migration_last_downtime_seconds") == 0.012
    assert value(ended, "qemu_ring_migration_absorbed_pages") == 7
    assert "qemu_ring_migration_absorbed_pages" not in families(GUEST)  # a QEMU that does not tell


def test_guest_that_hides_and_one_that_is_gone() -> None:
    hidden = GuestSnapshot("/run/a.qmp", Presence.SEEN, UNPATCHED, 0.1, "", 0.0)
    gone = replace(GUEST, presence=Presence.GONE, problem="gone")
    never = GuestSnapshot("/run/b.qmp", Presence.SILENT, None, 1.0, "silent", 0.0)
    found = families(hidden, gone, never)
    assert value(found, "qemu_ring_guest_up", guest="/run/a.qmp") == 1
    assert value(found, "qemu_ring_guest_up", guest="web") == 0
    assert value(found, "qemu_ring_guest_up", guest="/run/b.qmp") == 0
    assert set(found) == {
        "qemu_ring_guest_up",
        "qemu_ring_guest_qemu_info",
        "qemu_ring_guest_running",
    }


def test_state_that_is_not_known_here_and_names_that_are_no_utf8() -> None:
    strange = replace(
        GUEST,
        socket="/run/\udce9\n.qmp",
        state=replace(SEEN, migration=replace(MIGRATION, status=MigrationStatus("x-new"))),
    )
    found = families(strange)
    assert value(found, "qemu_ring_migration_status", status="x-new") == 1
    assert value(found, "qemu_ring_guest_up", socket="/run/\\udce9\n.qmp") == 1


@pytest.mark.parametrize(
    ("text", "address"),
    [
        (":9469", ("0.0.0.0", 9469)),
        ("localhost:1", ("localhost", 1)),
        ("[::1]:9469", ("::1", 9469)),
    ],
)
def test_listen_address(text: str, address: tuple[str, int]) -> None:
    assert parse_listen_address(text) == address


@pytest.mark.parametrize("text", ["9469", "host", "host:", ":70000", "::1:9469", ":x"])
def test_no_listen_address(text: str) -> None:
    with pytest.raises(UsageError, match="no address to listen at; use such as :9469"):
        parse_listen_address(text)


async def test_port_that_is_taken() -> None:
    async with metrics_server("127.0.0.1:0") as (_, url):
        at = url.removeprefix("http://").removesuffix("/metrics")
        with pytest.raises(UsageError, match=r"nothing can listen at .* in use; name another"):
            async with metrics_server(at):
                pass
    async with metrics_server(at):  # free again
        pass


def test_documented_names_are_those_that_there_are() -> None:
    text = (Path(__file__).resolve().parents[3] / "docs/top.md").read_text(encoding="utf-8")
    documented = set(re.findall(r"`(qemu_ring_\w+)`", text))
    found = families(replace(GUEST, state=COMPLETED)).values()
    assert documented == {sample.name for one in found for sample in one.samples}
