"""Whether two QEMUs are twins: what QEMU itself would find out only in the middle of a migration.

What it would refuse for certain is fatal. All else that differs may be meant, and is told only.
"""

from __future__ import annotations

import asyncio
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from qemu_ring.qmp import CommandError, Monitor, ProtocolError, commands

__all__ = ["Difference", "differences"]

_BLOCK = re.compile(r"^\s*(\S.*?)\s+\d+ \w+\s+0x\w+\s+0x(\w+)\s+0x(\w+)(?:\s|$)", re.MULTILINE)
"""A line of `info ramblock`: name, page size, offset, used, total."""
_PCI = (
    *("virtio-", "vhost-user-", "e1000", "rtl8139", "nvme", "ahci", "ich9-ahci", "qemu-xhci"),
    *("nec-usb-xhci", "usb-ehci", "ich9-usb-", "pci-bridge", "pcie-root-port", "ioh3420"),
    *("VGA", "cirrus-vga", "qxl", "bochs-display", "lsi53c", "megasas", "ivshmem-"),
)
"""What devices with a state of their own that a stream cannot do without begin with."""
_OTHERS = frozenset(
    {"usb-tablet", "usb-mouse", "usb-kbd", "usb-hub", "usb-storage", "scsi-hd", "scsi-cd"}
    | {"isa-serial"}
)
"""The same of those that have no PCI address."""
_MACHINE = ("hpet", "acpi", "smm", "usb", "vmport", "pit", "sata", "smbus", "i8042")
_CONTAINERS = ("peripheral", "peripheral-anon", "unattached")
_MOST_NAMED = 12


@dataclass(frozen=True, slots=True)
class Difference:
    """Something in which two QEMUs differ.

    Args:
        what: in words, without an end.
        fatal: whether no migration from the one to the other can succeed.
    """

    what: str
    fatal: bool

    def __str__(self) -> str:
        """The words."""
        return self.what


@dataclass(slots=True)
class _Facts:
    """What one QEMU is, as far as it tells."""

    machine: str = ""
    options: dict[str, str] = field(default_factory=dict)
    accelerator: str = ""
    blocks: dict[str, tuple[int, int]] = field(default_factory=dict)
    """Bytes used, and the most that they can grow to."""
    vcpus: dict[int, str] = field(default_factory=dict)
    """QOM path by number."""
    model: str = ""
    features: dict[tuple[object, ...], int] = field(default_factory=dict)
    devices: dict[str, str] = field(default_factory=dict)
    """Type by PCI address, through all bridges."""
    others: Counter[tuple[str, str]] = field(default_factory=Counter)
    """How many of a type on a bus."""


async def differences(source: Monitor, destination: Monitor) -> tuple[Difference, ...]:
    """Compare two QEMUs by QMP; nothing is changed, and the guest runs on.

    Args:
        source: the guest's.
        destination: that it is to go to; may be of another version.

    Returns:
        all that differ, those that are fatal first.

    Raises:
        QmpError: as in `Monitor.call`.
    """
    here, there = await asyncio.gather(_guest(source), _guest(destination))
    found = [
        *_machine(here, there),
        *_blocks(here.blocks, there.blocks),
        *_vcpus(here, there),
        *_devices(here, there),
    ]
    if lacking := await _lacking(source, destination, here, there):
        found.append(Difference(lacking, fatal=False))
    return tuple(sorted(found, key=lambda one: not one.fatal))


# What one side is


async def _guest(monitor: Monitor) -> _Facts:
    machine, kvm, vcpus, ramblock = await asyncio.gather(
        _get(monitor, "/machine", "type"),
        commands.query_kvm(monitor),
        commands.query_cpus_fast(monitor),
        commands.human(monitor, "info ramblock"),
    )
    options = await asyncio.gather(*(_get(monitor, "/machine", name) for name in _MACHINE))
    guest = _Facts(
        machine=str(machine or "").removesuffix("-machine"),
        options={n: _word(v) for n, v in zip(_MACHINE, options, strict=True) if v is not None},
        accelerator="kvm" if kvm.enabled else "another",
        blocks={one[1]: (int(one[2], 16), int(one[3], 16)) for one in _BLOCK.finditer(ramblock)},
        vcpus={cpu.cpu_index: cpu.qom_path for cpu in vcpus},
    )
    first = next(iter(guest.vcpus.values()), "")
    guest.model = str(await _get(monitor, first, "type") or "")
    words = await _get(monitor, first, "feature-words")
    for word in words if isinstance(words, list) else ():
        key = tuple(word.get(name) for name in ("cpuid-input-eax", "cpuid-input-ecx"))
        guest.features[(*key, word.get("cpuid-register"))] = int(word.get("features", 0))
    await _find_devices(monitor, guest)
    return guest


async def _find_devices(monitor: Monitor, guest: _Facts) -> None:
    listed = await asyncio.gather(*(_children(monitor, f"/machine/{c}") for c in _CONTAINERS))
    types = {path: kind for children in listed for path, kind in children.items()}
    buses, addresses = [
        dict(zip(types, await _all(monitor, types, [name]), strict=True))
        for name in ("parent_bus", "addr")
    ]

    def placed(path: str) -> str:
        """Where on which bus, in a way that no name given to a device plays a part in."""
        address = addresses[path]
        at = f"{address >> 3:02x}.{address & 7}" if isinstance(address, int) else types[path]
        return f"{bus(str(buses[path] or ''))} {at}"

    def bus(path: str) -> str:
        owner = path.rpartition("/")[0]
        while owner and owner not in types:
            owner = owner.rpartition("/")[0]
        if not owner or owner.startswith("/machine/unattached/"):
            return path.rpartition("/")[2]  # the board's
        return f"{placed(owner)} /"

    for path, kind in types.items():
        if not buses[path]:
            continue  # the board's own, or memory
        if isinstance(addresses[path], int) and addresses[path] >= 0:
            guest.devices[placed(path)] = kind
        elif not path.startswith("/machine/unattached/"):
            guest.others[(kind, bus(str(buses[path])))] += 1


async def _children(monitor: Monitor, container: str) -> dict[str, str]:
    """Types of the devices in a container, by path."""
    try:
        listed: Any = await monitor.execute("qom-list", {"path": container})
    except CommandError:
        return {}
    return {
        f"{container}/{one['name']}": one["type"][len("child<") : -1]
        for one in listed
        if one["type"].startswith("child<")
        and (not container.endswith("unattached") or one["name"].startswith("device["))
    }


async def _get(monitor: Monitor, path: str, name: str) -> Any:
    """A property; None if there is none."""
    if not path:
        return None
    try:
        return await commands.qom_get(monitor, path, name)
    except (CommandError, ProtocolError):
        return None


# What differs


def _machine(here: _Facts, there: _Facts) -> Iterator[Difference]:
    if here.machine and there.machine and here.machine != there.machine:
        what = f"machine type: {here.machine} at the source, {there.machine} at the destination"
        yield Difference(what, fatal=True)
        return
    for name in sorted(here.options.keys() & there.options.keys()):
        if here.options[name] != there.options[name]:
            what = (
                f"machine option {name}: {here.options[name]} at the source, "
                f"{there.options[name]} at the destination"
            )
            yield Difference(what, fatal=False)
    if here.accelerator != there.accelerator:
        what = (
            f"accelerator: {here.accelerator} at the source, {there.accelerator} at the destination"
        )
        yield Difference(what, fatal=False)


def _blocks(
    here: Mapping[str, tuple[int, int]], there: Mapping[str, tuple[int, int]]
) -> Iterator[Difference]:
    """RAM blocks: QEMU finds them by name, and grows those that can."""
    if not here or not there:
        return
    only_there = ", ".join(there.keys() - here.keys())
    for name, (used, most) in here.items():
        if name not in there:
            has = f", which has {only_there} instead" if only_there else ""
            yield Difference(
                f"memory {name} ({_size(used)}) is missing at the destination{has}", fatal=True
            )
            continue
        used_there, most_there = there[name]
        fixed = used == most and used_there == most_there
        if used > most_there or (fixed and used != used_there):
            yield Difference(
                f"memory {name}: {_size(used)} at the source, {_size(used_there)} at the "
                "destination",
                fatal=True,
            )


def _vcpus(here: _Facts, there: _Facts) -> Iterator[Difference]:
    for one, other, role, fatal in (
        (here, there, "destination", True),
        (there, here, "source", False),
    ):
        missing = sorted(one.vcpus.keys() - other.vcpus.keys())
        if missing:
            numbers = ", ".join(map(str, missing))
            yield Difference(f"vCPU {numbers} is missing at the {role}", fatal=fatal)


def _devices(here: _Facts, there: _Facts) -> Iterator[Difference]:
    for place in sorted(here.devices.keys() | there.devices.keys()):
        kind, other = here.devices.get(place), there.devices.get(place)
        if kind is not None and other is None:
            what = f"device {kind} at {place} is missing at the destination"
            yield Difference(what, fatal=kind.startswith(_PCI))
        elif kind is None and (other or "").startswith(_PCI):
            what = f"device {other} at {place} is missing at the source"
            yield Difference(what, fatal=False)
        elif kind != other and kind is not None and other is not None:
            if not (kind.startswith(_PCI) or other.startswith(_PCI)):
                continue  # the board's own may have another name in another version
            what = f"device at {place}: {kind} at the source, {other} at the destination"
            fatal = kind.startswith(_PCI) and other.startswith(_PCI)
            yield Difference(what, fatal=fatal and _family(kind) != _family(other))
    for one, another, role in ((here, there, "destination"), (there, here, "source")):
        for (name, bus), count in (one.others - another.others).items():
            what = f"device {name} on {bus} is missing at the {role}"
            if count > 1:
                what += f", {count} times"
            yield Difference(what, fatal=role == "destination" and name in _OTHERS)


def _family(kind: str) -> str:
    return kind.removesuffix("-non-transitional").removesuffix("-transitional")


def _word(value: object) -> str:
    return {True: "on", False: "off"}[value] if isinstance(value, bool) else str(value)


def _size(size: int) -> str:
    return f"{size / (1 << 20):g} MiB" if size >= 1 << 20 else f"{size:,} bytes"


# vCPU features: QEMU does not compare them, and a guest may not survive their loss


async def _lacking(source: Monitor, destination: Monitor, here: _Facts, there: _Facts) -> str:
    words = here.features.keys() & there.features.keys()
    lost = {word: here.features[word] & ~there.features[word] for word in words}
    count = sum(bits.bit_count() for bits in lost.values())
    if not count:
        return ""
    models = " and ".join(dict.fromkeys([here.model, there.model]))
    names = await _names_of_lost(source, destination, here, there)
    shown = ", ".join(names[:_MOST_NAMED]) + (", ..." if len(names) > _MOST_NAMED else "")
    return f"CPU {models}: {count} features of the guest's are missing at the destination: {shown}"


async def _names_of_lost(
    source: Monitor, destination: Monitor, here: _Facts, there: _Facts
) -> list[str]:
    first, second = min(here.vcpus.items())[1], min(there.vcpus.items())[1]
    listed: Any = await source.execute("qom-list", {"path": first})
    names = sorted(one["name"] for one in listed if one["type"] == "bool")
    ours = await _all(source, [first], names)
    theirs = await _all(destination, [second], names)
    lost = [name for name, a, b in zip(names, ours, theirs, strict=True) if a and b is not True]
    return [name for name in lost if "_" not in name and name not in ("realized", "hotplugged")]


async def _all(monitor: Monitor, paths: Iterable[str], names: Iterable[str]) -> list[Any]:
    """The properties of one object, or one property of several."""
    return await asyncio.gather(*(_get(monitor, path, name) for path in paths for name in names))
