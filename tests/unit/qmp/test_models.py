"""Models, on replies as real QEMUs of different ages give them."""

from __future__ import annotations

import pickle

import pytest
from pydantic import TypeAdapter, ValidationError

from qemu_ring.qmp.dirty import DirtyRateInfo
from qemu_ring.qmp.models import (
    CpuInfo,
    KvmInfo,
    MemoryBackendInfo,
    MigrationInfo,
    MigrationStatus,
    PciBus,
    PropertyInfo,
    StatusInfo,
    VersionInfo,
)

RAM_7_2 = {
    "total": 1082990592,
    "postcopy-requests": 0,
    "dirty-sync-count": 3,
    "multifd-bytes": 0,
    "pages-per-second": 32710,
    "downtime-bytes": 81,
    "page-size": 4096,
    "remaining": 4096,
    "postcopy-bytes": 0,
    "mbps": 1073.3,
    "transferred": 22016,
    "dirty-sync-missed-zero-copy": 0,
    "precopy-bytes": 21935,
    "duplicate": 264401,
    "dirty-pages-rate": 12,
    "skipped": 0,
    "normal-bytes": 8192,
    "normal": 2,
}
# What was there from the start; the rest came with later versions.
RAM_2_0 = {
    name: value
    for name, value in RAM_7_2.items()
    if name not in {"precopy-bytes", "downtime-bytes", "postcopy-bytes", "postcopy-requests"}
    and name not in {"multifd-bytes", "pages-per-second", "dirty-sync-missed-zero-copy"}
}


def test_no_migration_yet() -> None:
    info = MigrationInfo.model_validate({})
    assert info.status is None
    assert info.ram is None
    assert not info.is_active
    assert not info.is_final


def test_blocked_migration() -> None:
    assert MigrationInfo.model_validate({"blocked-reasons": ["why"]}).blocked_reasons == ("why",)


def test_migration_under_way() -> None:
    info = MigrationInfo.model_validate(
        {
            "status": "active",
            "expected-downtime": 300,
            "setup-time": 2,
            "total-time": 400,
            "ram": RAM_7_2,
        }
    )
    assert info.status is MigrationStatus.ACTIVE
    assert info.is_active
    assert (info.expected_downtime_ms, info.setup_time_ms, info.total_time_ms) == (300, 2, 400)
    assert info.downtime_ms is None
    assert info.ram is not None
    assert info.ram.dirty_sync_count == 3
    assert info.ram.precopy_bytes == 21935
    assert info.ram.mbps == 1073.3


def test_failed_migration() -> None:
    info = MigrationInfo.model_validate({"status": "failed", "error-desc": "broken pipe"})
    assert info.is_final
    assert info.error_desc == "broken pipe"


def test_ram_of_an_old_qemu() -> None:
    info = MigrationInfo.model_validate({"status": "completed", "downtime": 5, "ram": RAM_2_0})
    assert info.downtime_ms == 5
    assert info.ram is not None
    assert info.ram.downtime_bytes is None


def test_absorbed_pages_of_a_patched_qemu() -> None:
    for more, absorbed in (({"x-absorbed-pages": 7}, 7), ({}, None)):
        info = MigrationInfo.model_validate({"ram": RAM_7_2 | more})
        assert info.ram is not None
        assert info.ram.x_absorbed_pages == absorbed


def test_dirty_limit_of_a_new_qemu() -> None:
    info = MigrationInfo.model_validate(
        {"status": "active", "dirty-limit-throttle-time-per-round": 7}
    )
    assert info.dirty_limit_throttle_time_per_round_us == 7


def test_xbzrle_and_where_a_destination_listens() -> None:
    cache = {"bytes": 7, "cache-size": 4096, "cache-miss-rate": 0.5, "encoding-rate": 1.5}
    info = MigrationInfo.model_validate(
        {
            "xbzrle-cache": {**cache, "pages": 3, "overflow": 0, "cache-miss": 2},
            "socket-address": [{"type": "inet", "host": "::1", "port": "7777"}],
        }
    )
    assert info.xbzrle_cache is not None
    assert (info.xbzrle_cache.bytes, info.xbzrle_cache.cache_miss) == (7, 2)
    assert [address.port for address in info.socket_address] == ["7777"]


@pytest.mark.parametrize("status", MigrationStatus)
def test_status_is_active_or_final_or_none(status: MigrationStatus) -> None:
    final = status.value in {"completed", "failed", "cancelled"}
    assert status.is_final == final
    assert status.is_active == (not final and status.value != "none")


def test_unknown_status_is_kept() -> None:
    status = MigrationInfo.model_validate({"status": "teleporting"}).status
    assert isinstance(status, MigrationStatus)
    assert status == "teleporting"
    assert f"{status}" == str(status) == status.value == "teleporting"
    assert status.is_active
    assert not status.is_final
    assert "teleporting" not in {known.value for known in MigrationStatus}
    assert pickle.loads(pickle.dumps(status)) == status


def test_known_status_prints_as_its_value() -> None:
    assert f"{MigrationStatus.ACTIVE}" == str(MigrationStatus.ACTIVE) == "active"


@pytest.mark.parametrize("status", [7, None, ["active"]])
def test_status_that_is_no_text(status: object) -> None:
    with pytest.raises(ValueError, match="not a valid MigrationStatus"):
        MigrationStatus(status)


def test_pci() -> None:
    regions = [
        {"bar": 4, "size": 16, "address": 49152, "type": "io"},
        {
            "prefetch": True,
            "mem_type_64": True,
            "bar": 2,
            "size": 1 << 30,
            "address": -1,
            "type": "memory",
        },
    ]
    device = {
        "irq_pin": 0,
        "bus": 0,
        "qdev_id": "iv",
        "slot": 3,
        "function": 1,
        "class_info": {"class": 1280, "desc": "RAM controller"},
        "id": {"device": 4368, "subsystem-vendor": 6900, "vendor": 6900, "subsystem": 4352},
        "regions": regions,
    }
    window = {"base": 0, "limit": 1048575}
    behind = {
        "number": 0,
        "secondary": 1,
        "subordinate": 1,
        "io_range": window,
        "memory_range": window,
        "prefetchable_range": window,
    }
    bridge = {**device, "pci_bridge": {"bus": behind, "devices": [{**device, "bus": 1}]}}
    [bus] = TypeAdapter(list[PciBus]).validate_python([{"bus": 0, "devices": [device, bridge]}])
    first, second = bus.devices
    assert (first.bus, first.slot, first.function, first.qdev_id) == (0, 3, 1, "iv")
    assert (first.id.vendor, first.id.device, first.id.subsystem_vendor) == (6900, 4368, 6900)
    io, memory = first.regions
    assert io.mapped
    assert io.mem_type_64 is None
    assert not memory.mapped
    assert memory.mem_type_64
    assert memory.prefetch
    assert memory.size == 1 << 30
    assert second.pci_bridge is not None
    assert second.pci_bridge.devices[0].bus == 1


def test_the_rest() -> None:
    assert VersionInfo.model_validate(
        {"qemu": {"micro": 22, "minor": 2, "major": 7}, "package": "x"}
    ).qemu.triple == (7, 2, 22)
    assert StatusInfo.model_validate(
        {"status": "paused", "singlestep": False, "running": False}
    ) == StatusInfo(status="paused", running=False)
    assert KvmInfo.model_validate({"enabled": True, "present": True}).enabled
    props = {"core-id": 0, "thread-id": 0, "socket-id": 0}
    cpu = {"thread-id": 15153, "props": props, "qom-path": "/m/d[0]", "cpu-index": 0}
    assert CpuInfo.model_validate(cpu).thread_id == 15153
    backend = {
        "id": "mb",
        "size": 4096,
        "share": True,
        "reserve": True,
        "prealloc": False,
        "merge": True,
        "dump": True,
        "policy": "default",
        "host-nodes": [0, 1],
    }
    assert MemoryBackendInfo.model_validate(backend).host_nodes == (0, 1)
    rate = {
        "status": "measured",
        "sample-pages": 0,
        "dirty-rate": 108,
        "mode": "dirty-ring",
        "start-time": 871,
        "calc-time": 1,
        "vcpu-dirty-rate": [{"id": 0, "dirty-rate": 108}],
    }
    assert DirtyRateInfo.model_validate(rate).vcpu_dirty_rate[0].dirty_rate == 108
    assert DirtyRateInfo.model_validate({**rate, "status": "unstarted"}).calc_time_unit == "second"
    described = {"name": "addr", "type": "int32", "default-value": -1, "description": "Slot"}
    assert PropertyInfo.model_validate(described).default_value == -1


def test_models_are_frozen() -> None:
    with pytest.raises(ValidationError):
        StatusInfo(status="running", running=True).running = False  # type: ignore[misc]
