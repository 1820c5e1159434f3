"""What a description means: its workload, its slots, its memory; and what in it cannot be."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from qemu_ring.errors import UsageError
from qemu_ring.guest import PAGE_SIZE, Pattern, Region, Span, Stream, Workload
from qemu_ring.guest.linux import LinuxWorkload
from qemu_ring.guestfile.schema import GuestDescription, LinuxWorkloadPart, RegionPart, StreamPart
from qemu_ring.guestfile.source import Path
from qemu_ring.memslot import PciAddress

__all__ = ["linux_workload", "memory_sizes", "problems", "slot_address", "workload"]

Problem = tuple[Path, str]

RAM = "ram"
_FIRST_SLOT = 0x10  # on bus 0; devices without an address of their own come before
_COMMAND = 0x04
_MEMORY_UNIT = 8192
"""That QEMU rounds system RAM up to."""
_GIB = 1 << 30
_FIRMWARE_BYTES = 1 << 20
_LINUX_SPARE = 96 << 20  # for the kernel, on top of what its program writes to


def memory_sizes(guest: GuestDescription) -> dict[str, int]:
    """Bytes of each piece of guest memory: "ram", slots and backends by name."""
    return {
        RAM: guest.memory,
        **{slot.name: slot.size for slot in guest.slots},
        **{backend.id: backend.size for backend in guest.backends},
    }


def slot_address(guest: GuestDescription, name: str) -> PciAddress:
    """Where a slot's device sits."""
    return PciAddress(_FIRST_SLOT + [slot.name for slot in guest.slots].index(name))


def linux_workload(part: LinuxWorkloadPart) -> LinuxWorkload:
    """The parameters of a Linux guest's program."""
    return LinuxWorkload(part.size, part.pattern, part.pages_per_second, part.report_seconds)


def workload(guest: GuestDescription) -> Workload | None:
    """What the firmware is told; None for a guest without it.

    Raises:
        UsageError: it cannot be.
    """
    if guest.workload is None:
        return None
    regions = tuple(_region(guest, region) for region in guest.workload.regions)
    streams = [_stream(guest, regions, stream) for stream in guest.workload.streams]
    idle = [Stream()] * (guest.vcpus - len(streams))
    return Workload(regions, (*streams, *idle))


def problems(guest: GuestDescription) -> Iterator[Problem]:
    """All that no single field shows."""
    yield from _boot(guest)
    yield from _memory(guest)
    yield from _accelerator(guest)
    yield from _names(guest)
    slots = list(_slots(guest))
    yield from slots
    if not slots:  # else the workload's regions would be wrong for that alone
        yield from _workload(guest)
    for name, file in guest.fw_cfg.items():
        if (file.text is None) == (file.file is None):
            yield ("fw-cfg", name), "needs either text or file"


def _boot(guest: GuestDescription) -> Iterator[Problem]:
    ways = [way for way in ("workload", "linux", "firmware") if getattr(guest, way) is not None]
    for way in ways[1:]:
        yield (way,), f"cannot be with {ways[0]}: a guest starts one of workload, linux, firmware"
    linux = guest.linux
    if linux is None or linux.workload is None:
        return
    if linux.initrd is not None:
        yield (
            ("linux", "initrd"),
            "cannot be with linux.workload, which has an initramfs of its own",
        )
    try:
        linux_workload(linux.workload)
    except UsageError as error:
        yield ("linux", "workload", "size"), str(error)
    if linux.workload.size + _LINUX_SPARE > guest.memory:
        yield (
            ("linux", "workload", "size"),
            f"leaves Linux less than {_LINUX_SPARE >> 20} MiB of memory",
        )


def _memory(guest: GuestDescription) -> Iterator[Problem]:
    """QEMU rounds sizes up, and then finds that memory and its backend differ."""
    if guest.memory == 0 or guest.memory % _MEMORY_UNIT:
        yield ("memory",), f"must be a multiple of {_MEMORY_UNIT >> 10} KiB"
    for index, backend in enumerate(guest.backends):
        if backend.size == 0 or backend.size % PAGE_SIZE:
            yield ("backends", index, "size"), "must be whole pages of 4 KiB"


def _accelerator(guest: GuestDescription) -> Iterator[Problem]:
    if guest.accelerator != "kvm":
        for key, value in (("tracking", guest.tracking), ("flush-policy", guest.flush_policy)):
            if value is not None:
                yield (key,), "is for the accelerator kvm"


def _names(guest: GuestDescription) -> Iterator[Problem]:
    seen = {RAM}
    for key, field, names in (
        ("slots", "name", [slot.name for slot in guest.slots]),
        ("backends", "id", [backend.id for backend in guest.backends]),
    ):
        for index, name in enumerate(names):
            if name in seen:
                yield (key, index, field), f'"{name}" is the name of other memory already'
            seen.add(name)


def _slots(guest: GuestDescription) -> Iterator[Problem]:
    taken = list(_ram(guest))
    for index, slot in enumerate(guest.slots):
        if slot.size < 4096 or slot.size & (slot.size - 1):
            yield ("slots", index, "size"), "must be a power of two, and a page at least"
        elif slot.address is None:
            if guest.workload is not None:
                yield ("slots", index, "address"), "is missing: no BIOS runs that would choose one"
        elif guest.workload is None:
            yield ("slots", index, "address"), "is for a guest with a workload: the BIOS chooses it"
        elif slot.address % slot.size:
            yield ("slots", index, "address"), "must be a multiple of its size"
        else:
            place = range(slot.address, slot.address + slot.size)
            if any(_overlap(place, other) for other in taken):
                yield ("slots", index, "address"), "is where there is other memory already"
            taken.append(place)


def _workload(guest: GuestDescription) -> Iterator[Problem]:
    if guest.workload is None:
        return
    at: Path = ("workload",)
    found = []
    regions: list[Region] = []
    for index, region in enumerate(guest.workload.regions):
        try:
            regions.append(_region(guest, region))
        except UsageError as error:
            found.append(((*at, "regions", index), str(error)))
    if len(guest.workload.streams) > guest.vcpus:
        message = f"there are more than the {guest.vcpus} vCPUs of the guest (vcpus)"
        found.append(((*at, "streams"), message))
    for index, stream in enumerate(guest.workload.streams):
        try:
            if len(regions) == len(guest.workload.regions):
                _stream(guest, tuple(regions), stream)
        except UsageError as error:
            found.append(((*at, "streams", index), str(error)))
    if not found:
        try:
            workload(guest)
        except UsageError as error:
            found.append((at, str(error)))
    yield from found


def _region(guest: GuestDescription, part: RegionPart) -> Region:
    if part.slot is not None:
        if part.address is not None or part.size is not None:
            raise UsageError("it has a slot, and so no address and size of its own")
        for slot in guest.slots:
            if slot.name == part.slot:
                return Region(part.name, slot.address or 0, slot.size)
        raise UsageError(f'no slot is called "{part.slot}"')
    if part.address is None or part.size is None:
        raise UsageError("it needs an address and a size, or a slot")
    region = Region(part.name, part.address, part.size)
    place = range(region.address, region.address + region.size)
    if not any(place[0] in ram and place[-1] in ram for ram in _ram(guest)):
        raise UsageError(f"it is not all in RAM, of which there are {guest.memory >> 20} MiB")
    return region


def _stream(guest: GuestDescription, regions: tuple[Region, ...], part: StreamPart) -> Stream:
    if part.pattern is not Pattern.PCI_TOGGLE and part.slots:
        raise UsageError("slots are for pci-toggle")
    hot = Span(0, 0)
    if part.hot is not None:
        region = part.hot.region or part.region
        hot = _span(regions, region, part.hot.first, part.hot.pages)
    commands = [slot_address(guest, name).register(_COMMAND) for name in _known(guest, part.slots)]
    span = Span(0, 0)
    if part.pattern.writes:
        span = _span(regions, part.region, part.first, part.pages)
    return Stream(
        pattern=part.pattern,
        span=span,
        pages_per_second=part.pages_per_second,
        seed=part.seed,
        skew=part.skew,
        hot=hot,
        hot_run=part.hot_run,
        cold_run=part.cold_run,
        cold_once=part.cold_once,
        pci_commands=tuple(commands),
        rest_seconds=part.rest_seconds,
    )


def _known(guest: GuestDescription, names: Iterable[str]) -> Iterator[str]:
    for name in names:
        if name not in {slot.name for slot in guest.slots}:
            raise UsageError(f'no slot is called "{name}"')
        yield name


def _span(regions: tuple[Region, ...], name: str | None, first: int, pages: int | None) -> Span:
    region = next((one for one in regions if one.name == (name or regions[0].name)), None)
    if region is None:
        known = ", ".join(one.name for one in regions)
        raise UsageError(f'no region is called "{name}"; known: {known}')
    if first >= region.pages or (pages is not None and first + pages > region.pages):
        raise UsageError(f"it leaves region {region.name}, which has {region.pages} pages")
    return Workload(regions, (Stream(),)).span(region.name, first, pages)


def _ram(guest: GuestDescription) -> tuple[range, range]:
    """Where RAM is: below the PCI hole, and above 4 GiB (source: hw/i386/pc_piix.c, pc_q35.c)."""
    most, split = (0xB0000000, 2 * _GIB) if "q35" in guest.machine else (0xE0000000, 3 * _GIB)
    low = guest.memory if guest.memory < most else split
    return range(low), range(4 * _GIB, 4 * _GIB + guest.memory - low)


def _overlap(one: range, other: range) -> bool:
    return max(one.start, other.start) < min(one.stop, other.stop)
