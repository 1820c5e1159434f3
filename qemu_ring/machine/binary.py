"""What a QEMU binary is and can do, asked of the binary itself, never guessed."""

from __future__ import annotations

import asyncio
import hashlib
import os
import shutil
import socket
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from qemu_ring.build import built_binary
from qemu_ring.errors import HostError, QemuUnsuitableError, UsageError
from qemu_ring.machine.description import CommandLine
from qemu_ring.machine.process import ChildProcess, last_lines
from qemu_ring.machine.properties import FLUSH_POLICY, RING_SIZE
from qemu_ring.qmp import CommandError, Monitor, PropertyInfo, QmpError, Schema, commands

__all__ = ["QemuBinary", "find_qemu", "probe_qemu", "probe_schema", "sha256_of"]

_NAME = "qemu-system-x86_64"
_File = tuple[Path, int, int, int, int]


@dataclass(frozen=True, slots=True)
class QemuBinary:
    """A QEMU binary and its features.

    Args:
        path: the binary.
        version: such as "7.2.22 (Debian 1:7.2+dfsg-7)".
        sha256: of the binary, hex.
        kvm: whether KVM is built in.
        ring_property: the KVM accelerator's property that sets the ring's size in
            entries; None if this QEMU has no dirty ring.
        flush_policies: whether it is patched: its KVM accelerator has `memslot-flush`.
        ivshmem: whether it has `ivshmem-plain`, by which slots are removed.
        machines: machine types.
        memslot_testdev: whether it has the patches' device that removes slots in any shape.
    """

    path: Path
    version: str
    sha256: str
    kvm: bool
    ring_property: str | None
    flush_policies: bool
    ivshmem: bool
    machines: frozenset[str]
    memslot_testdev: bool = False

    def as_dict(self) -> dict[str, object]:
        """For JSON, without the long list of machine types."""
        fields = asdict(self)
        del fields["machines"], fields["flush_policies"]
        return {**fields, "path": str(self.path), "patched": self.flush_policies}

    def require_kvm(self) -> None:
        """Check that KVM is built in.

        Raises:
            QemuUnsuitableError: it is not.
        """
        if not self.kvm:
            raise self._unsuitable("was built without KVM", "name another QEMU")

    def require_ring(self) -> str:
        """Tell the accelerator's property that sets the dirty ring's size.

        Raises:
            QemuUnsuitableError: it does not.
        """
        if self.ring_property is None:
            raise self._unsuitable(
                "is too old for the dirty ring", "use QEMU 6.1 or newer, or track by bitmap"
            )
        return self.ring_property

    def require_flush_policies(self) -> None:
        """Check that it is patched to remove memslots by a policy.

        Raises:
            QemuUnsuitableError: it is not.
        """
        if not self.flush_policies:
            raise self._unsuitable("is not patched", "build one that is, with qemu-ring build")

    def require_memslot_testdev(self) -> None:
        """Check that slots can be removed in any shape.

        Raises:
            QemuUnsuitableError: they cannot.
        """
        if not self.memslot_testdev:
            raise self._unsuitable(
                "has no device memslot-testdev",
                "build one that has, with qemu-ring build, or leave the shape at pci",
            )

    def require_slot_removal(self, machine: str) -> None:
        """Check that slots can be removed on a machine type.

        Raises:
            QemuUnsuitableError: they cannot.
        """
        if not self.ivshmem:
            raise self._unsuitable(
                "has no ivshmem-plain device, by which slots are removed",
                "use a QEMU built with CONFIG_IVSHMEM_DEVICE, as the distributions' are",
            )
        if machine not in self.machines:
            raise self._unsuitable(f"has no machine type {machine}", "see -machine help")

    def _unsuitable(self, what: str, hint: str) -> QemuUnsuitableError:
        return QemuUnsuitableError(f"{self.path} ({self.version}) {what}", hint=hint)


def find_qemu(path: str | Path | None = None) -> Path:
    """The QEMU to use: the one named, else the patched one if it was built, else the first on PATH.

    Raises:
        UsageError: the path named is not a program.
        HostError: none is installed.
    """
    if path is None:
        built = built_binary()
        if built is not None:
            return built
        found = shutil.which(_NAME)
        if found is None:
            raise HostError(
                f"{_NAME} is not installed", hint="install it: apt-get install qemu-system-x86"
            )
        return Path(found)
    found = shutil.which(path)
    if found is None:
        what = "is a directory" if Path(path).is_dir() else "is not a program"
        what = what if Path(path).exists() else "does not exist"
        raise UsageError(f"{path} {what}", hint=f"name a {_NAME} binary")
    return Path(found)


_PROBED: dict[_File, QemuBinary] = {}


async def probe_qemu(path: Path, *, timeout: float | None = None) -> QemuBinary:
    """Ask a QEMU binary what it is and what it can do; needs no KVM and no guest.

    It is started for that, once for as long as the file stays the same.

    Args:
        path: the binary.
        timeout: seconds until it answers; None for `qmp.answer_timeout()`.

    Raises:
        QemuUnsuitableError: it is no QEMU for x86-64; its last words are in the message.
    """
    file = _file(path)
    found = _PROBED.get(file) if file else None
    if found is None:
        found = await _probe(path, timeout)
        if file:
            _PROBED[file] = found
    return found


def _file(path: Path) -> _File | None:
    """What tells a file from one that takes its place."""
    try:
        status = path.stat()
    except OSError:  # to start it will tell
        return None
    return path, status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


async def probe_schema(path: Path, *, timeout: float | None = None) -> Schema:
    """Ask a QEMU binary for all that its QMP offers, as `probe_qemu` does.

    Raises:
        QemuUnsuitableError: it is no QEMU; its last words are in the message.
    """
    async with _asked(path, timeout) as monitor:
        return await monitor.schema()


async def _probe(path: Path, timeout: float | None) -> QemuBinary:
    async with _asked(path, timeout) as monitor:
        return await _ask(monitor, path)


@asynccontextmanager
async def _asked(path: Path, timeout: float | None) -> AsyncIterator[Monitor]:
    """A monitor of a QEMU that is started without a guest, to be asked; it ends with the context.

    Raises:
        QemuUnsuitableError: it is no QEMU; its last words are in the message.
    """
    ours, theirs = socket.socketpair()
    with theirs, CommandLine() as line:
        line.add("-machine", "none,accel=tcg:kvm", "-nodefaults", "-display", "none", "-S")
        line.monitor(theirs)
        try:
            process = ChildProcess.start([str(path), *line.arguments], fds=line.fds)
        except BaseException:
            ours.close()
            raise
    try:
        async with await Monitor.connect(ours, name=str(path), timeout=timeout) as monitor:
            yield monitor
    except QmpError as error:
        await process.stop()
        text = process.output()
        why = last_lines(text, nothing=error.message)
        raise QemuUnsuitableError(
            f"{path} is no usable QEMU: {why}", hint=f"name a {_NAME} binary"
        ) from error
    finally:
        await process.end()


async def _ask(monitor: Monitor, path: Path) -> QemuBinary:
    target = await monitor.call("query-target", dict[str, str])
    if target.get("arch") != "x86_64":
        raise QemuUnsuitableError(
            f"{path} is a QEMU for {target.get('arch')}", hint=f"name a {_NAME} binary"
        )
    accelerator = await _names(commands.qom_list_properties(monitor, "kvm-accel"))
    ivshmem = await _names(commands.device_list_properties(monitor, "ivshmem-plain"))
    testdev = await _names(commands.device_list_properties(monitor, "memslot-testdev"))
    machines = await monitor.call("query-machines", list[dict[str, object]])
    names = {str(entry[key]) for entry in machines for key in ("name", "alias") if key in entry}
    version = ".".join(map(str, monitor.version))
    ring = next((name for name in RING_SIZE if name in accelerator), None)
    return QemuBinary(
        path=path,
        version=f"{version} ({monitor.package})" if monitor.package else version,
        sha256=await asyncio.to_thread(sha256_of, path),
        kvm=bool(accelerator),
        ring_property=ring,
        flush_policies=FLUSH_POLICY in accelerator,
        ivshmem=bool(ivshmem),
        memslot_testdev=bool(testdev),
        machines=frozenset(names),
    )


async def _names(properties: Awaitable[list[PropertyInfo]]) -> frozenset[str]:
    """Names of a type's properties; none if QEMU answers that there is no such type."""
    try:
        return frozenset(one.name for one in await properties)
    except CommandError:
        return frozenset()


def sha256_of(path: Path) -> str:
    """The digest of a file, hex."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_SEQUENTIAL)
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()
