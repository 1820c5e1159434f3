"""What tracking a guest uses, told from what QEMUs of many ages say."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from qemu_ring.dirty import RunningTracking, TrackingMode, query_tracking
from qemu_ring.dirty._vcpu_maps import mapped_ring_entries
from qemu_ring.qmp import CommandError
from tests.unit.dirty.conftest import Refusal, schema

if TYPE_CHECKING:
    from tests.unit.dirty.conftest import Connect

KVM = {"enabled": True, "present": True}
TCG = {"enabled": False, "present": True}
# As QEMU 7.2 and 10.0 answer.
NO_INDEX = Refusal("incorrect cpu index specified")
NOT_TCG = Refusal("JIT information is only available with accel=tcg")
# No thread has this number (PID_MAX_LIMIT is 2**22).
VCPU = {"cpu-index": 0, "thread-id": 2**22 + 1, "qom-path": "/x", "target": "x86_64"}
HVA = "Host virtual address for 0x0 (ram) is 0x7f977ffff000\r\n"
# Of a QEMU 7.2 with dirty-ring-size=4096, and of one without.
MAPS = """\
561e3c2d1000-561e3c9a0000 r--p 00000000 fe:00 1311 /usr/bin/qemu-system-x86_64
7f977ffff000-7f9783fff000 rw-s 00000000 00:01 2061 /memfd:qemu-ring-ram (deleted)
7f978be8e000-7f978be9e000 rw-s 00040000 00:10 1038 anon_inode:kvm-vcpu:1
7f978be9e000-7f978beae000 rw-s 00040000 00:10 1038 anon_inode:kvm-vcpu:0
7f978da11000-7f978da14000 rw-s 00000000 00:10 1038 anon_inode:kvm-vcpu:1
7f978da14000-7f978da17000 rw-s 00000000 00:10 1038 anon_inode:kvm-vcpu:0
7ffd1f5f0000-7ffd1f611000 rw-p 00000000 00:00 0 [stack]
7f978da20000-7f978da21000 ---p 00000000 00:00 0
"""
GUEST_MEMORY = 0x7F977FFFF000


@pytest.mark.parametrize(
    ("commands", "answers", "expected"),
    [
        (["x-query-dirty-rings"], {"x-query-dirty-rings": {"size": 4096}}, "ring:4096"),
        (["x-query-dirty-rings"], {"x-query-dirty-rings": {"size": 0}}, "bitmap"),
        (["cancel-vcpu-dirty-limit"], {"cancel-vcpu-dirty-limit": {}}, "bitmap"),
        (
            ["cancel-vcpu-dirty-limit"],
            {"cancel-vcpu-dirty-limit": NO_INDEX},
            "ring of unknown size",
        ),
        ([], {}, "unknown"),
    ],
)
async def test_kvm(
    connect: Connect, commands: list[str], answers: dict[str, Any], expected: str
) -> None:
    monitor, asked = await connect(
        {
            "query-kvm": KVM,
            "query-qmp-schema": schema("human-monitor-command", *commands),
            "query-cpus-fast": [[VCPU]],
            "human-monitor-command": HVA,
            **answers,
        }
    )
    async with monitor:
        found = await query_tracking(monitor)
    assert found.accelerator == "kvm"
    assert str(found) == expected
    # The one command that changes anything is given a vCPU that there cannot be.
    assert all(
        request.get("cpu-index") == -1
        for request in asked
        if request["execute"] == "cancel-vcpu-dirty-limit"
    )


@pytest.mark.parametrize(
    ("commands", "answers", "accelerator"),
    [
        (["x-query-jit"], {"x-query-jit": {"human-readable-text": "TB count 59"}}, "tcg"),
        (["x-query-jit"], {"x-query-jit": NOT_TCG}, None),
        (["query-accelerators"], {"query-accelerators": {"enabled": "xen", "present": []}}, "xen"),
        ([], {}, None),
    ],
)
async def test_not_kvm(
    connect: Connect, commands: list[str], answers: dict[str, Any], accelerator: str | None
) -> None:
    answers |= {"query-kvm": TCG, "query-qmp-schema": schema(*commands)}
    monitor, _ = await connect(answers)
    async with monitor:
        found = await query_tracking(monitor)
    assert found == RunningTracking(accelerator, TrackingMode.SOFTWARE)
    assert str(found) == (accelerator or "an accelerator that is not KVM")


async def test_qemu_without_a_human_monitor(connect: Connect) -> None:
    answers = {"query-kvm": KVM, "query-qmp-schema": schema("cancel-vcpu-dirty-limit")}
    monitor, _ = await connect({**answers, "cancel-vcpu-dirty-limit": NO_INDEX})
    async with monitor:
        assert str(await query_tracking(monitor)) == "ring of unknown size"


async def test_refusal_for_another_reason_is_no_ring(connect: Connect) -> None:
    monitor, _ = await connect(
        {
            "query-kvm": KVM,
            "query-qmp-schema": schema("cancel-vcpu-dirty-limit"),
            "cancel-vcpu-dirty-limit": Refusal("out of order"),
        }
    )
    async with monitor:
        with pytest.raises(CommandError, match="out of order"):
            await query_tracking(monitor)


@pytest.mark.parametrize(
    ("maps", "entries"),
    [
        (MAPS, 4096),
        ("".join(line for line in MAPS.splitlines(True) if "00040000" not in line), 0),
        ("".join(line for line in MAPS.splitlines(True) if "kvm-vcpu" not in line), None),
        (MAPS.replace("7f977ffff000-", "7f9780000000-"), None),  # it is another process
        ("", None),
    ],
)
def test_what_a_process_has_mapped(tmp_path: Path, maps: str, entries: int | None) -> None:
    (tmp_path / "77").mkdir()
    (tmp_path / "77" / "maps").write_text(maps)
    assert mapped_ring_entries(77, GUEST_MEMORY, tmp_path) == entries


def test_process_that_is_not_here() -> None:
    assert mapped_ring_entries(VCPU["thread-id"], GUEST_MEMORY) is None  # type: ignore[arg-type]


def test_json() -> None:
    assert RunningTracking("kvm", TrackingMode.RING, 4096).as_dict() == {
        "accelerator": "kvm",
        "mode": "ring",
        "ring_entries": 4096,
    }
