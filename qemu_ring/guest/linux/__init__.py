"""A Linux guest that writes memory: Debian's kernel, and one program of ours as its first process.

It finds out by itself whether memory was lost: each page is compared with what was last
written to it, before it is written again.
"""

from qemu_ring.guest.linux.initramfs import initramfs
from qemu_ring.guest.linux.kernel import debian_kernel
from qemu_ring.guest.linux.report import LinuxReport, read_reports
from qemu_ring.guest.linux.workload import LinuxPattern, LinuxWorkload

__all__ = [
    "LinuxPattern",
    "LinuxReport",
    "LinuxWorkload",
    "debian_kernel",
    "initramfs",
    "read_reports",
]
