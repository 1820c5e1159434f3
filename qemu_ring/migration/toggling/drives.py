"""The drives of a guest: what image is in each, how its speed is limited, and who has them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from qemu_ring.qmp import CommandError, Monitor, QmpError

__all__ = ["Drive", "activate", "query_drives", "set_limits"]

_ENDS = ("", "_rd", "_wr")
_LIMITS = tuple(f"{what}{end}" for what in ("bps", "iops") for end in _ENDS)
_BURSTS = tuple(f"{one}_max" for one in _LIMITS)
_LENGTHS = tuple(f"{one}_length" for one in _BURSTS)


@dataclass(frozen=True, slots=True)
class Drive:
    """A drive with an image in it.

    Args:
        device: QOM path of the device, or the drive's name if none has it.
        image: as QEMU names it.
        limits: those of `block_set_io_throttle` that are set; empty if none is.
    """

    device: str
    image: str
    limits: dict[str, int | str]


async def query_drives(monitor: Monitor) -> dict[str, Drive]:
    """All drives that have an image, by name; by their device if they have none.

    Raises:
        QmpError: as in `Monitor.call`.
    """
    listed: Any = await monitor.execute("query-block")
    drives = {}
    for one in listed:
        if "inserted" not in one:
            continue
        image = one["inserted"]
        known = (*_LIMITS, *_BURSTS, *_LENGTHS, "iops_size", "group")
        limits = {name: image[name] for name in known if image.get(name)}
        limited = any(limits.get(name) for name in _LIMITS)
        device = one.get("qdev") or one["device"]
        drives[one["device"] or device] = Drive(device, image["file"], limits if limited else {})
    return drives


async def set_limits(monitor: Monitor, drive: Drive, limits: dict[str, int | str]) -> None:
    """Limit a drive's speed; no limits take those away that it has.

    Raises:
        QmpError: as in `Monitor.call`.
    """
    by = "id" if drive.device.startswith("/") else "device"
    arguments = {by: drive.device, **dict.fromkeys(_LIMITS, 0), **limits}
    await monitor.execute("block_set_io_throttle", arguments)


async def activate(monitor: Monitor) -> tuple[str, ...]:
    """Take a paused guest's disks over after its migration; returns what went amiss, in words.

    QEMU before 10.0 has no command for that, and did so at the migration's end.
    """
    try:
        await monitor.execute("blockdev-set-active", {"active": True})
    except QmpError as error:
        if not (isinstance(error, CommandError) and error.error_class == "CommandNotFound"):
            return (f"its disks are not in use before it runs: {error.message}",)
    return ()
