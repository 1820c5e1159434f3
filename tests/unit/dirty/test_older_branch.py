"""The kvm-dirty-ring branch, before its property was renamed: `dirty-gfn-count`.

Patch 8 of its version 7 (6 May 2021) registers it as a class property of type uint32, as
`dirty-ring-size` is now. So it is listed where binaries are probed.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from qemu_ring.dirty import Tracking
from qemu_ring.machine import Accelerator
from qemu_ring.machine.binary import _ask

if TYPE_CHECKING:
    from tests.unit.dirty.conftest import Connect

BRANCH = {
    "name": "dirty-gfn-count",
    "type": "uint32",
    "description": "KVM dirty GFN count (=0 to disable dirty ring)",
}
MERGED = {
    "name": "dirty-ring-size",
    "type": "uint32",
    "description": "Size of KVM dirty page ring buffer (default: 0, i.e. use bitmap)",
}
SHADOW = {"name": "kvm-shadow-mem", "type": "int", "description": "KVM shadow MMU size"}


@pytest.mark.parametrize(
    ("properties", "named"),
    [
        ([SHADOW, BRANCH], "dirty-gfn-count"),
        ([SHADOW, MERGED], "dirty-ring-size"),
        ([MERGED, BRANCH], "dirty-ring-size"),
        ([SHADOW], None),
    ],
)
async def test_property_is_found_and_used(
    connect: Connect, tmp_path: Path, properties: list[dict[str, str]], named: str | None
) -> None:
    path = tmp_path / "qemu"
    path.write_bytes(b"qemu")
    monitor, asked = await connect(
        {
            "query-target": {"arch": "x86_64"},
            "query-qmp-schema": [],
            "qom-list-properties": [properties],
            "device-list-properties": [[]],
            "query-machines": [[{"name": "pc"}]],
        }
    )
    async with monitor:
        binary = await _ask(monitor, path)
    assert {"execute": "qom-list-properties", "typename": "kvm-accel"} in asked
    assert binary.ring_property == named
    if named is not None:
        assert Tracking(4096).accelerator(binary) == Accelerator("kvm", {named: 4096})
