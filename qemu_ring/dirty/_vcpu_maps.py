"""What a process has mapped of its KVM vCPUs: the only trace that an unpatched QEMU's ring leaves.

A vCPU's file descriptor has its `kvm_run` at offset 0 and, from the offset
KVM_DIRTY_LOG_PAGE_OFFSET (pages) on, its dirty ring (Documentation/virt/kvm/api.rst in Linux).
QEMU maps all of the ring.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from qemu_ring.machine.mappings import mappings

__all__ = ["mapped_ring_entries"]

_VCPU: Final = "anon_inode:kvm-vcpu"
_RING_OFFSET: Final = 64 * 4096
"""x86's KVM_DIRTY_LOG_PAGE_OFFSET, in bytes."""
_ENTRY_BYTES: Final = 16
"""Of a struct kvm_dirty_gfn."""


def mapped_ring_entries(
    thread_id: int, guest_memory: int, proc: Path = Path("/proc")
) -> int | None:
    """Entries of the dirty ring that a vCPU's process has mapped.

    Args:
        thread_id: a vCPU's thread.
        guest_memory: an address in the process at which it has guest memory mapped.
        proc: the proc file system.

    Returns:
        0 if it has none mapped, and None if that cannot be seen: the thread is not on this
        host, or another's than the guest's, or this user may not look at it.
    """
    try:
        mapped = mappings(thread_id, proc)
    except OSError:
        return None
    is_the_guest = any(one.start <= guest_memory < one.end for one in mapped)
    vcpus = [one for one in mapped if one.name.startswith(_VCPU)]
    rings = [one for one in vcpus if one.offset == _RING_OFFSET]
    entries = (rings[-1].end - rings[-1].start) // _ENTRY_BYTES if rings else 0
    return entries if is_the_guest and vcpus else None
