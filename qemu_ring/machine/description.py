"""A QEMU machine as data, and the command line that it becomes."""

from __future__ import annotations

import json
import socket
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from qemu_ring.machine.memory import UnnamedFile

__all__ = ["Accelerator", "CommandLine", "Device", "Disk", "MachineDescription", "MemoryBackend"]

Value = str | int | bool | Path | list[str]


def _option(head: str, properties: Mapping[str, Value]) -> str:
    """`head,key=value,...` in QEMU's syntax: on/off for bool, a comma doubled."""
    parts = [head] if head else []
    for key, value in properties.items():
        text = ("off", "on")[value] if isinstance(value, bool) else str(value)
        parts.append(f"{key}={text.replace(',', ',,')}")
    return ",".join(parts)


def _device(device: Device) -> str:
    """A device in QEMU's syntax; as JSON if it has a list, which the other one cannot say."""
    if any(isinstance(value, list) for value in device.properties.values()):
        return json.dumps({"driver": device.driver, **device.properties}, default=str)
    return _option(device.driver, device.properties)


@dataclass(frozen=True, slots=True)
class Accelerator:
    """`-accel`: its name (kvm, tcg) and properties (such as dirty-ring-size)."""

    name: str
    properties: Mapping[str, Value] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class MemoryBackend:
    """A `memory-backend-file` over a file of ours.

    Args:
        id: QEMU's object id, and the name of the RAM block in results.
        file: what backs it; its owner closes it.
        share: writes reach the file. Without it the file stays as it was.
    """

    id: str
    file: UnnamedFile
    share: bool = True


@dataclass(frozen=True, slots=True)
class Device:
    """`-device`: a driver and its properties; one may be a list of strings."""

    driver: str
    properties: Mapping[str, Value] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Disk:
    """A disk image on virtio."""

    path: Path
    format: str = "raw"
    read_only: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class MachineDescription:
    """What to start. Nothing is added behind your back but a monitor and logs.

    Args:
        accelerator: kvm or tcg, and its properties.
        memory: system RAM.
        machine: machine type and its options, such as "pc" or "q35,smm=off".
        cpu: CPU model; None for the machine's own.
        vcpus: number of vCPUs, each its own socket, so that APIC ids count from 0.
        backends: further memory, for devices.
        devices: in this order.
        firmware: image for `-bios`, as a path or as bytes; None for QEMU's own.
        kernel, initrd, append: direct kernel boot.
        disks: on virtio, in this order.
        fw_cfg: files for the guest, by name (opt/...).
        incoming: `-incoming`, for the destination of a migration; "defer" as a rule.
        paused: start with the vCPUs stopped.
        trace: patterns of trace events to log.
        log: QEMU's log items (`-d`), such as "guest_errors".
        extra: further arguments, as they are.
    """

    accelerator: Accelerator
    memory: MemoryBackend
    machine: str = "pc"
    cpu: str | None = None
    vcpus: int = 1
    backends: tuple[MemoryBackend, ...] = ()
    devices: tuple[Device, ...] = ()
    firmware: Path | bytes | None = None
    kernel: Path | None = None
    initrd: Path | None = None
    append: str | None = None
    disks: tuple[Disk, ...] = ()
    fw_cfg: Mapping[str, bytes] = field(default_factory=dict)
    incoming: str | None = None
    paused: bool = False
    trace: tuple[str, ...] = ()
    log: tuple[str, ...] = ()
    extra: tuple[str, ...] = ()


class CommandLine(ExitStack):
    """Arguments, and the descriptors that the process must inherit with them.

    Leaving the context closes what was made for the command line alone: not the
    memory backends, whose owner is the caller.
    """

    def __init__(self) -> None:
        super().__init__()
        self.arguments: list[str] = []
        self.fds: set[int] = set()

    def add(self, *arguments: str) -> None:
        """Append arguments."""
        self.arguments += arguments

    def inherit(self, file: UnnamedFile) -> str:
        """Let the process inherit a file; returns its path there."""
        self.fds.add(file.fd)
        return file.path

    def content(self, name: str, content: bytes) -> str:
        """A file with this content, for the process only; returns its path there."""
        file = self.enter_context(UnnamedFile(name))
        file.write(content)
        return self.inherit(file)

    def monitor(self, theirs: socket.socket) -> None:
        """Append a QMP monitor on the end of a socket pair that the process inherits."""
        self.fds.add(theirs.fileno())
        self.add("-chardev", f"socket,id=qemu-ring-qmp,fd={theirs.fileno()}")
        self.add("-mon", "chardev=qemu-ring-qmp,mode=control")

    def listen(self, listening: socket.socket) -> None:
        """Append a QMP monitor on a listening socket that the process inherits."""
        self.fds.add(listening.fileno())
        name = f"qemu-ring-qmp-{listening.fileno()}"
        self.add("-chardev", f"socket,id={name},fd={listening.fileno()},server=on,wait=off")
        self.add("-mon", f"chardev={name},mode=control")

    def machine(self, description: MachineDescription, *, log: UnnamedFile) -> None:
        """Append all that `description` asks for."""
        d = description
        self.add("-machine", f"{d.machine},memory-backend={d.memory.id}")
        self.add("-accel", _option(d.accelerator.name, d.accelerator.properties))
        self.add("-m", f"size={d.memory.file.size}B")
        self.add("-smp", f"{d.vcpus},sockets={d.vcpus},cores=1,threads=1")
        self.add("-nodefaults", "-no-user-config", "-display", "none", "-vga", "none")
        self.add("-nic", "none")
        if d.cpu is not None:
            self.add("-cpu", d.cpu)
        for backend in (d.memory, *d.backends):
            properties: dict[str, Value] = {
                "id": backend.id,
                "size": f"{backend.file.size}B",
                "mem-path": self.inherit(backend.file),
                "share": backend.share,
            }
            self.add("-object", _option("memory-backend-file", properties))
        for device in d.devices:
            self.add("-device", _device(device))
        self._boot(d)
        for index, disk in enumerate(d.disks):
            options: dict[str, Value] = {
                "if": "virtio",
                "index": index,
                "file": disk.path,
                "format": disk.format,
                "read-only": disk.read_only,
            }
            self.add("-drive", _option("", options))
        if d.incoming is not None:
            self.add("-incoming", d.incoming)
        if d.paused:
            self.add("-S")
        self.add("-D", self.inherit(log))
        for item in d.log:
            self.add("-d", item)
        for pattern in d.trace:
            self.add("-trace", f"enable={pattern}")
        self.add(*d.extra)

    def _boot(self, d: MachineDescription) -> None:
        if isinstance(d.firmware, bytes):
            self.add("-bios", self.content("firmware", d.firmware))
        elif d.firmware is not None:
            self.add("-bios", str(d.firmware))
        for option, value in (("-kernel", d.kernel), ("-initrd", d.initrd), ("-append", d.append)):
            if value is not None:
                self.add(option, str(value))
        for name, content in d.fw_cfg.items():
            path = self.content(name.rpartition("/")[2], content)
            self.add("-fw_cfg", _option("", {"name": name, "file": path}))
