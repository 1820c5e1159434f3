"""What runs in a guest, and how to tell that it goes on after a migration."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from qemu_ring.guest import Pattern, Region, Stream, Workload, image_bytes, layout
from qemu_ring.guest.linux import LinuxWorkload, debian_kernel, initramfs, read_reports
from tests.qemu.machines.parts import EXTRA, MIB, Plug
from tests.qemu.machines.qemus import Qemu

OVMF = Path("/usr/share/OVMF")
_TSC_HZ = 1_000_000_000
_BIOS_TICKS = 0x46C
_WRITTEN = Region("ram", 8 * MIB, 8 * MIB)
_RATE = 4000


@dataclass(frozen=True)
class Program:
    """What a guest runs: by default QEMU's own BIOS, which finds nothing to start, and waits.

    Args:
        ram: memory that it needs, bytes.
        kvm: whether it runs where KVM emulates what runs in ring 0.
        driven: whether it leaves the devices to the test, which then plays their drivers.
        writes: whether it writes enough, if not paced, that precopy would never be done.
        seconds: how long it may take to start, on a busy host.
    """

    name: str = "SeaBIOS"
    ram: int = 64 * MIB
    kvm: bool = False
    driven: bool = False
    writes: bool = False
    seconds: float = 120.0

    async def arguments(self, folder: Path, plug: Plug, *, paced: bool = True) -> list[str]:
        """What QEMU is to be given, besides a firmware; files go to `folder`.

        `paced` writes no faster than precopy sends; otherwise something is left for postcopy.
        """
        return []

    def firmware(self, folder: Path, *, flash: bool) -> Path | None:
        """Make the firmware, and what the second flash memory holds; None for QEMU's own."""
        return None

    async def count(self, qemu: Qemu) -> int:
        """A number that rises while the guest runs, and stays while it does not."""
        (ticks,) = await qemu.words(_BIOS_TICKS, 1, "w")
        return ticks


@dataclass(frozen=True)
class Firmware(Program):
    """Our own, which writes pages, those that were plugged too."""

    name: str = "firmware"
    ram: int = 32 * MIB
    kvm: bool = True
    driven: bool = True
    writes: bool = True

    async def arguments(self, folder: Path, plug: Plug, *, paced: bool = True) -> list[str]:
        regions = [_WRITTEN]
        if plug.address is not None:
            regions.append(Region("plugged", plug.address, EXTRA))
        workload = Workload(tuple(regions), (Stream(),))
        stream = Stream(
            Pattern.LOOP,
            workload.span("ram", 0, workload.pages),
            pages_per_second=_RATE if paced else None,
        )
        words = []
        for name, content in Workload(tuple(regions), (stream,)).fw_cfg(_TSC_HZ).items():
            path = folder / name.replace("/", "-")
            path.write_bytes(content)
            words += ["-fw_cfg", f"name={name},file={path}"]
        return words

    def firmware(self, folder: Path, *, flash: bool) -> Path:
        path = folder / "firmware"
        path.write_bytes(image_bytes())
        (folder / "variables").write_bytes(b"\xff" * (64 << 10))
        return path

    async def count(self, qemu: Qemu) -> int:
        _, writes = await qemu.words(layout.STATISTICS, 2)
        return writes


@dataclass(frozen=True)
class Linux(Program):
    """Linux, whose program says if a page was lost; started by OVMF where the board has flash."""

    name: str = "Linux"
    ram: int = 192 * MIB
    writes: bool = True
    seconds: float = 240.0

    async def arguments(self, folder: Path, plug: Plug, *, paced: bool = True) -> list[str]:
        kernel, disk = await debian_kernel(), await initramfs()
        workload = LinuxWorkload(
            8 * MIB, pages_per_second=_RATE if paced else None, report_seconds=0.1
        )
        append = f"console=ttyS0 quiet {workload.append()}"
        return ["-kernel", str(kernel), "-initrd", str(disk), "-append", append]

    def firmware(self, folder: Path, *, flash: bool) -> Path | None:
        if not flash:
            return None
        shutil.copy(OVMF / "OVMF_VARS_4M.fd", folder / "variables")
        return OVMF / "OVMF_CODE_4M.fd"

    async def count(self, qemu: Qemu) -> int:
        found = read_reports(qemu.serial)
        assert not any(report.stale for report in found), found[-1]
        return found[-1].writes if found else 0


FIRMWARE, SEABIOS, LINUX = Firmware(), Program(), Linux()
