"""The host that guests run on: its kernel, its CPUs, and the memory that it has left.

Everything is read below a `root` directory, which is `/` but in tests.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath

from qemu_ring.errors import HostError

__all__ = ["Host", "memory_available_bytes", "probe_host", "require_memory", "shm_free_bytes"]

_ROOT = Path("/")
_MIB = 1 << 20
_MODULES = "sys/module"
_MAINLINE_MODULES = frozenset({"kvm_intel", "kvm_amd"})


@dataclass(frozen=True, slots=True)
class Host:
    """A host as it was when probed.

    Args:
        kernel: its release, such as 6.1.0-18-amd64.
        cpu_model: the first CPU's model name; empty where the kernel tells none.
        cpus: how many this process may run on.
        memory_available_bytes: what can be allocated without swapping or passing a cgroup's limit.
        kvm_module: KVM's vendor module, such as kvm_intel, or several names where several are
            there; None where it cannot be seen, or KVM has none (other architectures than x86).
        kvm_module_mainline: whether that is one of mainline Linux, by its name and its taint; None
            where it is not known.
    """

    kernel: str
    cpu_model: str
    cpus: int
    memory_available_bytes: int
    kvm_module: str | None = None
    kvm_module_mainline: bool | None = None

    @property
    def kvm_in_words(self) -> str:
        """KVM's vendor module, and whose it is."""
        if self.kvm_module is None:
            return "not known"
        whose = "mainline's" if self.kvm_module_mainline else "NOT one of mainline Linux"
        return f"{self.kvm_module}, {whose}"

    def as_dict(self) -> dict[str, str | int | bool | None]:
        """All fields, for JSON."""
        return asdict(self)


def probe_host(root: Path = _ROOT) -> Host:
    """Look at this host.

    Raises:
        HostError: /proc is missing, or not what Linux has there.
    """
    modules = sorted(path.name for path in (root / _MODULES).glob("kvm_*"))
    return Host(
        kernel=_read(root / "proc/sys/kernel/osrelease").strip(),
        cpu_model=_fields(_read(root / "proc/cpuinfo")).get("model name", ""),
        cpus=len(os.sched_getaffinity(0)),
        memory_available_bytes=memory_available_bytes(root),
        kvm_module=", ".join(modules) or None,
        kvm_module_mainline=all(_is_mainline(root, name) for name in modules) if modules else None,
    )


def _is_mainline(root: Path, module: str) -> bool:
    """Whether a vendor module of KVM has a name that mainline has, and was not built apart."""
    taint = root / _MODULES / module / "taint"  # a module that is built in has none
    out_of_tree = taint.exists() and "O" in _read(taint)
    return module in _MAINLINE_MODULES and not out_of_tree


def memory_available_bytes(root: Path = _ROOT) -> int:
    """Bytes that this process can still allocate: the host's, or less where a cgroup limits it.

    Raises:
        HostError: /proc is missing, or not what Linux has there.
    """
    path = root / "proc/meminfo"
    try:
        available = int(_fields(_read(path))["MemAvailable"].removesuffix("kB")) * 1024
    except (KeyError, ValueError) as error:
        raise HostError(f"{path} does not tell MemAvailable") from error
    return max(0, min([available, *_left_in_cgroups(root)]))


def shm_free_bytes(path: str | os.PathLike[str] = "/dev/shm") -> int:  # noqa: S108
    """Free bytes of the file system at `path`; sys.maxsize for a tmpfs without a size limit.

    Raises:
        HostError: there is no such path.
    """
    try:
        status = os.statvfs(path)
    except OSError as error:
        raise HostError(
            f"{os.fspath(path)} cannot be used: {error.strerror}",
            hint="mount a tmpfs there, or choose another directory for guest memory",
        ) from error
    return status.f_bavail * status.f_frsize if status.f_blocks else sys.maxsize


def require_memory(needed_bytes: int, host: Host, what: str) -> None:
    """Refuse what would not fit into the host's memory.

    Args:
        needed_bytes: what it will allocate.
        host: the host as it is now.
        what: what it is, such as "two guests of 4096 MiB".

    Raises:
        HostError: there is not enough.
    """
    if needed_bytes > host.memory_available_bytes:
        raise HostError(
            f"not enough memory for {what}: needs {-(-needed_bytes // _MIB)} MiB, "
            f"{host.memory_available_bytes // _MIB} MiB are available",
            hint="use smaller guests, end other programs, or raise the container's memory limit",
        )


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError as error:
        raise HostError(
            f"cannot read {path}: {error.strerror}", hint="this needs Linux with /proc mounted"
        ) from error


def _fields(text: str) -> dict[str, str]:
    """The "name: value" lines of a /proc file; the first of each name counts."""
    pairs = (line.split(":", 1) for line in text.splitlines() if ":" in line)
    return {name.strip(): value.strip() for name, value in reversed(list(pairs))}


@dataclass(frozen=True, slots=True)
class _Names:
    """How one version of cgroups names what is to know about memory."""

    limits: tuple[str, ...]
    usage: str
    file_cache: str


_V1 = _Names(("memory.limit_in_bytes",), "memory.usage_in_bytes", "total_inactive_file")
_V2 = _Names(("memory.max", "memory.high"), "memory.current", "inactive_file")


def _left_in_cgroups(root: Path) -> Iterator[int]:
    """What each memory cgroup that this process is in leaves it, from its own to the topmost."""
    for names, mount, cgroup in _memory_cgroups(root):
        for directory in (cgroup, *cgroup.parents):
            left = _left_in(directory, names)
            if left is not None:
                yield left
            if directory == mount:
                break


def _memory_cgroups(root: Path) -> Iterator[tuple[_Names, Path, Path]]:
    """This process's memory cgroup in each mounted hierarchy, after where that is mounted."""
    membership = root / "proc/self/cgroup"
    if not membership.exists():  # a kernel without cgroups
        return
    own: dict[str, str] = {}
    for line in _read(membership).splitlines():
        _, controllers, cgroup = line.split(":", 2)
        own |= dict.fromkeys(controllers.split(","), cgroup)
    for line in _read(root / "proc/self/mountinfo").splitlines():
        place, _, kind = line.partition(" - ")
        fs_type, _, options = kind.split(maxsplit=2)
        if fs_type == "cgroup2":
            names, controller = _V2, ""
        elif fs_type == "cgroup" and "memory" in options.split(","):
            names, controller = _V1, "memory"
        else:
            continue
        mounted_cgroup, mount_point = place.split()[3:5]
        mount = root / mount_point.lstrip("/")
        if controller in own:
            yield names, mount, mount / _below(own[controller], mounted_cgroup)


def _below(cgroup: str, mounted: str) -> PurePosixPath:
    """Where a cgroup is below the one that is mounted; that one itself when it is not visible."""
    path = PurePosixPath(cgroup)
    if path.is_relative_to(mounted):
        return path.relative_to(mounted)
    # A container may see its cgroup mounted, and yet be told the path that the host has for it.
    return PurePosixPath()


def _left_in(cgroup: Path, names: _Names) -> int | None:
    try:
        limits = [(cgroup / name).read_text().strip() for name in names.limits]
        usage = int((cgroup / names.usage).read_text())
        statistics = dict(
            line.split() for line in (cgroup / "memory.stat").read_text().splitlines()
        )
    except OSError:  # the root cgroup, or one without the memory controller
        return None
    # File cache counts as used, but is given up first.
    used = usage - int(statistics.get(names.file_cache, 0))
    return min((int(limit) - used for limit in limits if limit != "max"), default=None)
