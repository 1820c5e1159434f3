"""Pages that differ because KVM itself has written the guest's clock at the destination."""

from __future__ import annotations

import struct

__all__ = ["KVMCLOCK", "is_newer_clock"]

KVMCLOCK = "KVM has renewed the guest's clock there when the destination was loaded"

# struct pvclock_vcpu_time_info of Linux: version, padding, time stamp counter, system time,
# multiplier, shift, flags, padding. KVM writes one for each vCPU where the guest asked for it, with
# an even version that grows, and does so while it loads a guest that does not run yet.
_CLOCK = struct.Struct("<IIQQIbBH")


def is_newer_clock(source: bytes, destination: bytes) -> bool:
    """Whether two copies of a page differ in kvmclocks only, each newer at the destination.

    A lost dirty bit leaves the destination an older copy, never a newer one.
    """
    different = int.from_bytes(source, "little") ^ int.from_bytes(destination, "little")
    while different:
        first = ((different & -different).bit_length() - 1) // 8
        least = max(0, first - _CLOCK.size + 1 + 3) // 4 * 4  # a clock begins at a multiple of 4
        starts = range(least, min(first, len(source) - _CLOCK.size) + 1, 4)
        found = next((at for at in starts if _is_newer(source, destination, at)), None)
        if found is None:
            return False
        end = (found + _CLOCK.size) * 8
        different = different >> end << end
    return source != destination


def _is_newer(source: bytes, destination: bytes, at: int) -> bool:
    old = _CLOCK.unpack_from(source, at)
    new = _CLOCK.unpack_from(destination, at)
    return _is_clock(old) and _is_clock(new) and 0 < new[0] - old[0] < 1 << 16 and new[3] >= old[3]


def _is_clock(fields: tuple[int, ...]) -> bool:
    version, padding, counter, _, multiplier, shift, flags, end = fields
    return (
        0 < version < 1 << 24
        and version % 2 == 0
        and padding == end == 0
        and counter > 0
        and multiplier >= 1 << 31  # KVM shifts it so far
        and -32 < shift < 32
        and flags < 8
    )
