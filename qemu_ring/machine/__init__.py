"""Start, attach to and stop a QEMU; find out what this host and a QEMU binary can do."""

from qemu_ring.machine.binary import QemuBinary, find_qemu, probe_qemu, probe_schema
from qemu_ring.machine.description import (
    Accelerator,
    Device,
    Disk,
    MachineDescription,
    MemoryBackend,
)
from qemu_ring.machine.diagnosis import Check, Diagnosis, Finding, diagnose
from qemu_ring.machine.errors import MachineDiedError, MachineError
from qemu_ring.machine.host import Host, probe_host, require_memory
from qemu_ring.machine.instance import Instance, Life
from qemu_ring.machine.kvm import KvmCapabilities, probe_kvm
from qemu_ring.machine.last_words import LastWords
from qemu_ring.machine.leftovers import Leftovers, new_folder_name
from qemu_ring.machine.machine import Machine
from qemu_ring.machine.memory import UnnamedFile, require_space
from qemu_ring.machine.named_socket import named_socket
from qemu_ring.machine.peer import (
    RunningBinary,
    sees,
    serving_binary,
    serving_process,
    serving_user,
)
from qemu_ring.machine.process import last_lines
from qemu_ring.machine.sockets import credentials

__all__ = [
    "Accelerator",
    "Check",
    "Device",
    "Diagnosis",
    "Disk",
    "Finding",
    "Host",
    "Instance",
    "KvmCapabilities",
    "LastWords",
    "Leftovers",
    "Life",
    "Machine",
    "MachineDescription",
    "MachineDiedError",
    "MachineError",
    "MemoryBackend",
    "QemuBinary",
    "RunningBinary",
    "UnnamedFile",
    "credentials",
    "diagnose",
    "find_qemu",
    "last_lines",
    "named_socket",
    "new_folder_name",
    "probe_host",
    "probe_kvm",
    "probe_qemu",
    "probe_schema",
    "require_memory",
    "require_space",
    "sees",
    "serving_binary",
    "serving_process",
    "serving_user",
]
