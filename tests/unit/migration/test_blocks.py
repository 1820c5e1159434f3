"""Reading where a guest's memory is from what QEMU says; it lists address spaces in any order."""

from __future__ import annotations

from itertools import permutations

import pytest

from qemu_ring.migration import blocks
from qemu_ring.qmp import Monitor, commands

MEMORY = """\
 AS "memory", root: system
  0000000000000000-000000000009ffff (prio 0, ram): ram0 KVM
  00000000000c0000-00000000000dffff (prio 1, rom): pc.rom KVM
  00000000000e0000-0000000000ffffff (prio 0, ram): ram0 @00000000000e0000 KVM
  0000000100000000-00000001007fffff (prio 0, ram): plugged KVM
"""
PLUGGED = """\
 AS "device-memory", root: device-memory
  0000000000000000-00000000007fffff (prio 0, ram): plugged
"""
PORTS = """\
 AS "I/O", root: io
"""
MAPPED = {"0x0": ("ram0", 0x1000), "0xc0000": ("pc.rom", 0x9000), "0xe0000": ("ram0", 0xE1000)}
MAPPED["0x100000000"] = ("plugged", 0x2000000)


@pytest.mark.parametrize("order", [*permutations((MEMORY, PLUGGED, PORTS))])
async def test_main_memory_is_found_beside_plugged_memory(
    order: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def human(monitor: Monitor, command_line: str, **_: object) -> str:
        what, *words = command_line.split()
        if what == "info":
            return "".join(f"FlatView #{number}\n{view}" for number, view in enumerate(order))
        name, host = MAPPED[words[0]]
        return f"Host virtual address for {words[0]} ({name}) is {host:#x}\r\n"

    monkeypatch.setattr(commands, "human", human)

    seen = await blocks._in_guest(Monitor("guest"))
    assert seen.main == 0x1000
    assert seen.regions == {"ram0": {0x1000}, "pc.rom": {0x9000}, "plugged": {0x2000000}}
