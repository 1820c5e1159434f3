"""Dirty limits: rounding, and what is refused before QEMU is asked."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from qemu_ring.dirty import (
    VcpuLimit,
    cancel_dirty_limit,
    granted_limit,
    least_limit,
    query_dirty_limits,
    set_dirty_limit,
)
from qemu_ring.errors import QemuRingError, QemuUnsuitableError, UsageError
from tests.unit.dirty.conftest import schema

if TYPE_CHECKING:
    from tests.unit.dirty.conftest import Connect

MIB = 1 << 20
CPUS = [{"cpu-index": n, "thread-id": 1, "qom-path": "/x"} for n in (0, 1)]


def answers(**more: Any) -> dict[str, Any]:
    table: dict[str, Any] = {
        "query-kvm": {"enabled": True, "present": True},
        "query-qmp-schema": schema("set-vcpu-dirty-limit", "x-query-dirty-rings"),
        "x-query-dirty-rings": {"size": 4096},
        "query-cpus-fast": [CPUS],
        "set-vcpu-dirty-limit": {},
        "cancel-vcpu-dirty-limit": {},
        "query-vcpu-dirty-limit": [[{"cpu-index": 1, "limit-rate": 50, "current-rate": 60}]],
    }
    return table | {name.replace("_", "-"): answer for name, answer in more.items()}


@pytest.mark.parametrize(
    ("asked", "granted"),
    [(1, 1), (MIB, 1), (MIB * 3 // 2 - 1, 1), (MIB * 3 // 2, 2), (50 * MIB, 50), (50_000_000, 48)],
)
def test_rounded_to_the_nearest_whole_mib(asked: int, granted: int) -> None:
    assert granted_limit(asked) == granted * MIB


@pytest.mark.parametrize("rate", [0, -1])
def test_no_limit(rate: int) -> None:
    with pytest.raises(UsageError, match=r"is no dirty limit; .*cancel"):
        granted_limit(rate)


def test_one_ring_a_second_is_the_least() -> None:
    assert least_limit(4096) == 16 * MIB
    assert least_limit(65536) == 256 * MIB


async def test_units(connect: Connect) -> None:
    monitor, asked = await connect(answers())
    async with monitor:
        limits = await set_dirty_limit(monitor, 50_000_000, vcpu=1)
        assert limits == await cancel_dirty_limit(monitor) == await query_dirty_limits(monitor)
    assert limits == (VcpuLimit(1, 50 * MIB, 60 * MIB),)
    assert limits[0].as_dict() == {
        "vcpu": 1,
        "limit_bytes_per_second": 50 * MIB,
        "rate_bytes_per_second": 60 * MIB,
    }
    assert {"execute": "set-vcpu-dirty-limit", "dirty-rate": 48, "cpu-index": 1} in asked
    assert {"execute": "cancel-vcpu-dirty-limit"} in asked


@pytest.mark.parametrize(
    ("more", "vcpu", "kind", "words"),
    [
        ({"x_query_dirty_rings": {"size": 0}}, None, QemuUnsuitableError, "tracking is bitmap; "),
        ({}, 2, UsageError, "no vCPU 2; it has vCPU 0, 1"),
        ({}, -1, UsageError, "no vCPU -1"),
        ({"query_qmp_schema": []}, None, QemuUnsuitableError, "no dirty limits; use QEMU 7.1"),
    ],
)
async def test_refused(
    connect: Connect,
    more: dict[str, Any],
    vcpu: int | None,
    kind: type[QemuRingError],
    words: str,
) -> None:
    monitor, asked = await connect(answers(**more))
    async with monitor:
        with pytest.raises(kind, match=words):
            await set_dirty_limit(monitor, MIB, vcpu=vcpu)
    assert "set-vcpu-dirty-limit" not in [request["execute"] for request in asked]


async def test_cancel_of_a_vcpu_that_is_not_there(connect: Connect) -> None:
    monitor, asked = await connect(answers())
    async with monitor:
        with pytest.raises(UsageError, match="no vCPU 7"):
            await cancel_dirty_limit(monitor, vcpu=7)
    assert "cancel-vcpu-dirty-limit" not in [request["execute"] for request in asked]
