"""QMP: a monitor connection with deadlines, typed commands, events, and one clear end.

::

    async with await Monitor.connect("/tmp/qmp.sock") as monitor:
        status = await commands.query_status(monitor)
        with monitor.events("STOP") as events:
            await commands.stop(monitor)
            await events.wait(timeout=5)

Nothing here holds the loop up or waits without a deadline, except for what is named
`wait_disconnected`. See `qemu_ring.qmp.errors` for what can be raised.
"""

from qemu_ring.qmp import commands
from qemu_ring.qmp.address import Address, parse_address, unix_name
from qemu_ring.qmp.errors import (
    CommandError,
    CommandTimeoutError,
    ConnectError,
    DisconnectedError,
    ProtocolError,
    QmpError,
)
from qemu_ring.qmp.events import Event, Listener
from qemu_ring.qmp.models import (
    CharDevice,
    CpuInfo,
    KvmInfo,
    MemoryBackendInfo,
    MigrationInfo,
    MigrationRam,
    MigrationStatus,
    PciBus,
    PciDevice,
    PciRegion,
    PropertyInfo,
    QmpModel,
    SocketAddress,
    StatusInfo,
    VersionInfo,
    XbzrleCache,
)
from qemu_ring.qmp.monitor import Monitor
from qemu_ring.qmp.patience import DEFAULT_TIMEOUT, answer_timeout, set_answer_timeout
from qemu_ring.qmp.schema import Schema

__all__ = [  # noqa: RUF022 - in order of importance
    "Monitor",
    "commands",
    "Event",
    "Listener",
    "Schema",
    "QmpError",
    "ConnectError",
    "DisconnectedError",
    "CommandError",
    "CommandTimeoutError",
    "ProtocolError",
    "QmpModel",
    "MigrationInfo",
    "MigrationRam",
    "MigrationStatus",
    "XbzrleCache",
    "SocketAddress",
    "StatusInfo",
    "VersionInfo",
    "KvmInfo",
    "CpuInfo",
    "PciBus",
    "PciDevice",
    "PciRegion",
    "MemoryBackendInfo",
    "PropertyInfo",
    "CharDevice",
    "Address",
    "parse_address",
    "unix_name",
    "DEFAULT_TIMEOUT",
    "answer_timeout",
    "set_answer_timeout",
]
