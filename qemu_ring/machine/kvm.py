"""What this host's KVM can do, asked of the kernel and not guessed from its version."""

from __future__ import annotations

import errno
import fcntl
import os
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from enum import IntEnum

from qemu_ring.errors import HostError

__all__ = ["KvmCapabilities", "probe_kvm"]

_API_VERSION = 12
_DIRTY_RING_ENTRY_BYTES = 16  # sizeof(struct kvm_dirty_gfn)


class _Ioctl(IntEnum):
    """Requests from linux/kvm.h; all are _IO(0xAE, n)."""

    KVM_GET_API_VERSION = 0xAE00
    KVM_CREATE_VM = 0xAE01
    KVM_CHECK_EXTENSION = 0xAE03
    KVM_CREATE_VCPU = 0xAE41
    KVM_GET_TSC_KHZ = 0xAEA3


class _Cap(IntEnum):
    """Capabilities from linux/kvm.h, what KVM_CHECK_EXTENSION takes."""

    KVM_CAP_NR_MEMSLOTS = 10
    KVM_CAP_MAX_VCPUS = 66
    KVM_CAP_READONLY_MEM = 81
    KVM_CAP_X86_SMM = 117
    KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2 = 168
    KVM_CAP_DIRTY_LOG_RING = 192
    KVM_CAP_DIRTY_LOG_RING_ACQ_REL = 223
    KVM_CAP_DIRTY_LOG_RING_WITH_BITMAP = 225


class _ManualProtect(IntEnum):
    """Bits of KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2."""

    KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE = 1 << 0
    KVM_DIRTY_LOG_INITIALLY_SET = 1 << 1


@dataclass(frozen=True, slots=True)
class KvmCapabilities:
    """What KVM on this host offers a virtual machine.

    Args:
        api_version: always 12 since Linux 2.6.22.
        dirty_ring_max_bytes: largest dirty ring a vCPU can have; 0 when there is none.
        dirty_ring_with_bitmap: the ring can be backed by a bitmap for writes outside a vCPU.
        readonly_mem: memslots can be read-only.
        manual_protect2: raw flags of KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2.
        smm: system management mode, which gives guests a second address space.
        nr_memslots: most memslots of an address space.
        max_vcpus: most vCPUs of a virtual machine.
        tsc_khz: frequency of the guest's time stamp counter; 0 when it is not stable.
    """

    api_version: int
    dirty_ring_max_bytes: int
    dirty_ring_with_bitmap: bool
    readonly_mem: bool
    manual_protect2: int
    smm: bool
    nr_memslots: int
    max_vcpus: int
    tsc_khz: int

    @property
    def dirty_ring_max_entries(self) -> int:
        """Largest dirty ring in entries, one a page; 0 when there is none."""
        return self.dirty_ring_max_bytes // _DIRTY_RING_ENTRY_BYTES

    @property
    def manual_protect(self) -> bool:
        """Whether dirty pages can be write-protected again apart from fetching the bitmap."""
        return bool(self.manual_protect2 & _ManualProtect.KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE)

    @property
    def initially_set(self) -> bool:
        """Whether a memslot's bitmap can start all dirty."""
        return bool(self.manual_protect2 & _ManualProtect.KVM_DIRTY_LOG_INITIALLY_SET)

    def as_dict(self) -> dict[str, int | bool]:
        """All fields and derived values, for JSON."""
        return asdict(self) | {
            "dirty_ring_max_entries": self.dirty_ring_max_entries,
            "manual_protect": self.manual_protect,
            "initially_set": self.initially_set,
        }


def probe_kvm(path: str | os.PathLike[str] = "/dev/kvm") -> KvmCapabilities:
    """Ask KVM what it offers, by creating a virtual machine with one vCPU for a moment.

    Blocks for some milliseconds; leaves nothing open, whatever happens.

    Raises:
        HostError: `path` is missing, not accessible, not KVM, or KVM cannot run a guest now.
    """
    path = os.fspath(path)
    with ExitStack() as opened:
        try:
            kvm = os.open(path, os.O_RDWR | os.O_CLOEXEC)
            opened.callback(os.close, kvm)
            api_version = _ioctl(kvm, _Ioctl.KVM_GET_API_VERSION)
            if api_version != _API_VERSION:
                raise HostError(f"{path} has KVM API version {api_version}, not {_API_VERSION}")
            machine = _ioctl(kvm, _Ioctl.KVM_CREATE_VM)
            opened.callback(os.close, machine)
            vcpu = _ioctl(machine, _Ioctl.KVM_CREATE_VCPU)
            opened.callback(os.close, vcpu)
            # Asked of the machine, because some answers depend on what kind it is.
            answers = {cap: _ioctl(machine, _Ioctl.KVM_CHECK_EXTENSION, cap) for cap in _Cap}
            tsc_khz = _tsc_khz(vcpu)
        except OSError as error:
            raise _host_error(path, error) from error
    return KvmCapabilities(
        api_version=api_version,
        # x86 offers both, weakly ordered hosts only the second; no host offers different sizes.
        dirty_ring_max_bytes=max(
            answers[_Cap.KVM_CAP_DIRTY_LOG_RING], answers[_Cap.KVM_CAP_DIRTY_LOG_RING_ACQ_REL]
        ),
        dirty_ring_with_bitmap=bool(answers[_Cap.KVM_CAP_DIRTY_LOG_RING_WITH_BITMAP]),
        readonly_mem=bool(answers[_Cap.KVM_CAP_READONLY_MEM]),
        manual_protect2=answers[_Cap.KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2],
        smm=bool(answers[_Cap.KVM_CAP_X86_SMM]),
        nr_memslots=answers[_Cap.KVM_CAP_NR_MEMSLOTS],
        max_vcpus=answers[_Cap.KVM_CAP_MAX_VCPUS],
        tsc_khz=tsc_khz,
    )


def _ioctl(fd: int, request: _Ioctl, argument: int = 0) -> int:
    while True:
        try:
            return fcntl.ioctl(fd, request, argument)
        except InterruptedError:  # KVM_CREATE_VM is, by any signal that arrives meanwhile
            continue


def _tsc_khz(vcpu: int) -> int:
    try:
        return _ioctl(vcpu, _Ioctl.KVM_GET_TSC_KHZ)
    except OSError as error:
        if error.errno == errno.EIO:  # the host's TSC is not stable
            return 0
        raise


_ENABLE = (
    "load it with `sudo modprobe kvm_intel` or `sudo modprobe kvm_amd`; if that fails, enable "
    "virtualization in the BIOS, or nested virtualization where this is a virtual machine"
)
_NO_DRIVER = ("has no KVM driver behind it", _ENABLE)
_CAUSES = {
    errno.ENOENT: (
        "does not exist",
        f"in a container, start it with `--device /dev/kvm`; else KVM is not loaded: {_ENABLE}",
    ),
    errno.ENODEV: _NO_DRIVER,
    errno.ENXIO: _NO_DRIVER,
    errno.EACCES: (
        "may not be opened by this user",
        "join its group with `sudo usermod -aG kvm $USER` and log in again",
    ),
    errno.EPERM: ("is forbidden here", "start the container with `--device /dev/kvm`"),
    errno.EBUSY: (
        "cannot be used now: virtualization is taken, or disabled by the BIOS",
        "stop other hypervisors such as VirtualBox, or enable virtualization in the BIOS",
    ),
    errno.ENOTTY: (
        "is not a KVM device",
        "give the path of the host's KVM device, usually /dev/kvm",
    ),
}


def _host_error(path: str, error: OSError) -> HostError:
    cause, hint = _CAUSES.get(
        error.errno or 0,
        (f"cannot be used: {error.strerror}", "see the kernel's log with `sudo dmesg`"),
    )
    return HostError(f"{path} {cause}", hint=hint)
