"""What a machine may have, a row each: its arguments for QEMU, and what it needs of others."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

MIB = 1 << 20
EXTRA = 8 * MIB
"""Memory that is plugged, bytes."""
DIMM_ADDRESS = 1 << 32
VIRTIO_MEM_ADDRESS = 5 << 30
NET_SLOT, MEM_SLOT, BALLOON_SLOT, DISK_SLOT = 0x10, 0x11, 0x12, 0x13
"""Places on the PCI bus at which the test itself drives a device; QEMU gives others lower ones."""
MAC = "52:54:00:12:34:56"


@dataclass(frozen=True)
class Site:
    """One QEMU among those that a guest comes to.

    Args:
        folder: for this QEMU alone: sockets, memory.
        shared: for all of them: disks.
        number: which of them it is, from 0.
        tap: name of its tap device.
    """

    folder: Path
    shared: Path
    number: int
    tap: str


Arguments = Callable[[Site], Sequence[str]]


@dataclass(frozen=True)
class Memory:
    """What guest memory is made of.

    Args:
        backend: QEMU's object, without id and size.
        nodes: NUMA nodes, each with a backend of its own.
        shared: whether another process can map it, as a vhost-user back end does.
        huge: whether it takes 2 MiB pages of the host.
    """

    name: str
    backend: str
    nodes: int = 1
    shared: bool = True
    huge: bool = False

    def object(self, site: Site, name: str, size: int) -> str:
        place = site.folder / f"{name}.ram"
        return f"{self.backend.format(place=place)},id={name},size={size}B"

    def arguments(self, site: Site, size: int) -> list[str]:
        words = ["-m", f"size={size}B,slots=4,maxmem=16G"]
        for node in range(self.nodes):
            words += ["-object", self.object(site, f"ram{node}", size // self.nodes)]
            if self.nodes > 1:
                words += ["-numa", f"node,nodeid={node},memdev=ram{node}"]
        return words if self.nodes > 1 else [*words, "-machine", "memory-backend=ram0"]


_FILE = "memory-backend-file,share=on,mem-path={place}"
_MEMFD = "memory-backend-memfd,share=on"
MEMORIES = (
    Memory("file", _FILE),
    Memory("memfd", _MEMFD),
    Memory("anonymous", "memory-backend-ram", shared=False),
    Memory("2 MiB pages", f"{_MEMFD},hugetlb=on,hugetlbsize=2M", huge=True),
    Memory("2 NUMA nodes", _FILE, nodes=2),
)


@dataclass(frozen=True)
class Board:
    """A machine type, and where its firmware is.

    Args:
        versioned: the machine type's name before its version, such as pc-i440fx.
        flash: the firmware is in flash memory, with a second one that can be written.
    """

    name: str
    machine: str
    versioned: str
    flash: bool = False

    def arguments(self, site: Site, firmware: Path | None, version: str | None) -> list[str]:
        """For a firmware's image; None is QEMU's own BIOS.

        A `variables` beside the disks is what the second flash memory holds.
        """
        machine = self.machine if version is None else f"{self.versioned}-{version}"
        words = ["-machine", machine]
        if firmware is None:
            return words
        if not self.flash:
            return [*words, "-bios", str(firmware)]
        flash = "if=pflash,format=raw,unit="
        return [
            *words,
            *("-drive", f"{flash}0,readonly=on,file={firmware}"),
            *("-drive", f"{flash}1,file={site.shared / 'variables'}"),
        ]


BOARDS = (
    Board("pc", "pc", "pc-i440fx"),
    Board("q35", "q35", "pc-q35"),
    Board("q35+flash", "q35", "pc-q35", flash=True),
)


@dataclass(frozen=True)
class Disk:
    """A disk on an image that both sides have; `path` is where QEMU has the device."""

    name: str
    devices: tuple[str, ...]
    path: str = "disk"

    def arguments(self, site: Site, image: str) -> list[str]:
        node = f"driver={image},node-name=image,file.driver=file"
        words = ["-blockdev", f"{node},file.filename={site.shared / f'disk.{image}'}"]
        for device in self.devices:
            words += ["-device", device]
        return words


DISKS = (
    Disk(
        "virtio-blk",
        (f"virtio-blk-pci,drive=image,id=disk,addr={DISK_SLOT:#x}",),
        "/machine/peripheral/disk/virtio-backend",
    ),
    Disk(
        "virtio-scsi",
        (f"virtio-scsi-pci,id=scsi,addr={DISK_SLOT:#x}", "scsi-hd,drive=image,bus=scsi.0,id=disk"),
    ),
    Disk("ide", ("ide-hd,drive=image,bus=ide.0,id=disk",)),
)
IMAGES = ("raw", "qcow2")


@dataclass(frozen=True)
class Net:
    """What a virtio-net device is connected to.

    Args:
        vhost_user: a back end of the test's own, at `back-end` in the QEMU's folder.
        needs_root: making the peer takes CAP_NET_ADMIN.
    """

    name: str
    peer: Arguments
    vhost_user: bool = False
    needs_root: bool = False

    def arguments(self, site: Site) -> list[str]:
        device = f"virtio-net-pci,netdev=net,id=nic,mac={MAC},addr={NET_SLOT:#x}"
        return [*self.peer(site), "-device", device]


def _stream(site: Site) -> list[str]:
    address = f"addr.type=unix,addr.path={site.folder / 'net'}"
    return ["-netdev", f"stream,id=net,server=on,{address}"]


def _tap(site: Site) -> list[str]:
    return ["-netdev", f"tap,id=net,ifname={site.tap},script=no,downscript=no,vhost=off"]


def _vhost_user(site: Site) -> list[str]:
    chardev = f"socket,id=back-end,path={site.folder / 'back-end'}"
    return ["-chardev", chardev, "-netdev", "vhost-user,id=net,chardev=back-end"]


NETS = (
    Net("socket", _stream),
    Net("tap", _tap, needs_root=True),
    Net("vhost-user", _vhost_user, vhost_user=True),
)


@dataclass(frozen=True)
class Devices:
    """Devices that need nothing but their words; `balloon` tells that one of them is one."""

    name: str
    words: tuple[str, ...] = ()
    balloon: bool = False

    def arguments(self) -> list[str]:
        return [word for device in self.words for word in ("-device", device)]


DISPLAYS = (
    Devices("VGA", ("VGA",)),
    Devices("virtio-gpu", ("virtio-gpu-pci",)),
    Devices("no display"),
)
OTHERS = (
    Devices("USB", ("qemu-xhci,id=usb", "usb-tablet,bus=usb.0", "usb-kbd,bus=usb.0")),
    Devices("balloon", (f"virtio-balloon-pci,id=balloon,addr={BALLOON_SLOT:#x}",), balloon=True),
    Devices("serial+rng", ("virtio-serial-pci,id=ports", "virtserialport", "virtio-rng-pci")),
)


Properties = tuple[tuple[str, str | int], ...]


@dataclass(frozen=True)
class Plug:
    """What was plugged into the guest that runs, before it is migrated.

    The first QEMU gets it through its monitor; the others have it from the start, in the same
    place, as a management tool would start them.

    Args:
        smp: the vCPUs it starts with, and may have.
        device: driver and properties of what is plugged.
        memory: id of the memory backend that it needs; empty for none.
        address: where that memory is in the guest, and stays.
        by_guest: the device is there from the start, and the guest plugs its memory by it.
    """

    name: str
    smp: str = "1"
    device: Properties = ()
    memory: str = ""
    address: int | None = None
    by_guest: bool = False

    def arguments(self, site: Site, memory: Memory) -> list[str]:
        """For a QEMU that has it from the start."""
        words = []
        if self.memory:
            words += ["-object", memory.object(site, self.memory, EXTRA)]
        if self.device:
            words += ["-device", ",".join(_property(*item) for item in self.device)]
        return words


def _property(key: str, value: str | int) -> str:
    return str(value) if key == "driver" else f"{key}={value}"


def _vcpu(socket: int) -> Properties:
    model = (("driver", "qemu64-x86_64-cpu"), ("id", "vcpu"))
    return (*model, ("socket-id", socket), ("core-id", 0), ("thread-id", 0))


_SMP = "1,maxcpus=4,sockets=4,cores=1,threads=1"
_DIMM: Properties = (
    ("driver", "pc-dimm"),
    ("id", "dimm"),
    ("memdev", "plugged"),
    ("addr", DIMM_ADDRESS),
)
_VIRTIO_MEM: Properties = (
    ("driver", "virtio-mem-pci"),
    ("id", "vmem"),
    ("memdev", "plugged"),
    ("memaddr", VIRTIO_MEM_ADDRESS),
    ("block-size", 2 * MIB),
    ("requested-size", EXTRA),
    ("addr", f"{MEM_SLOT:#x}"),
)
PLUGS = (
    Plug("nothing"),
    Plug("pc-dimm", device=_DIMM, memory="plugged", address=DIMM_ADDRESS),
    Plug(
        "virtio-mem",
        device=_VIRTIO_MEM,
        memory="plugged",
        address=VIRTIO_MEM_ADDRESS,
        by_guest=True,
    ),
    Plug("vCPU", smp=_SMP, device=_vcpu(1)),
    Plug("vCPU, a hole", smp=_SMP, device=_vcpu(2)),
)
