"""Driving one live migration, whatever its kind."""

from qemu_ring.migration.channels.channel import AbstractUnix, Channel, Exec, Fd, File, Tcp, Unix
from qemu_ring.migration.channels.command import Command
from qemu_ring.migration.comparison import Difference
from qemu_ring.migration.cpr import CprTransferMigration
from qemu_ring.migration.downtime import Downtime, GuestDowntime, firmware_writes
from qemu_ring.migration.engine.recovery import recover_postcopy
from qemu_ring.migration.engine.setup import find_obstacles
from qemu_ring.migration.errors import (
    EndedEarlyError,
    GuestAt,
    MigrationAbortedError,
    MigrationCancelledError,
    MigrationError,
    MigrationOutcome,
    PlanError,
    PostcopyPausedError,
)
from qemu_ring.migration.goal import (
    Goal,
    GoalAction,
    GoalDecision,
    GoalFigures,
    GoalOutcome,
    GoalThen,
)
from qemu_ring.migration.migration import Migration
from qemu_ring.migration.plan import (
    AbortRules,
    AutoConverge,
    BackgroundSnapshot,
    Compression,
    CprReboot,
    CprTransfer,
    DirtyLimit,
    Kind,
    MappedRam,
    MigrationPlan,
    Multifd,
    Postcopy,
    Precopy,
    Tls,
    Xbzrle,
    ZeroPage,
)
from qemu_ring.migration.precopy import HeldPrecopy, Pace
from qemu_ring.migration.restore import restore
from qemu_ring.migration.result import MigrationResult, Totals
from qemu_ring.migration.timeline import Iteration, Sample, Timeline
from qemu_ring.migration.toggling.toggle import Toggled, toggle

__all__ = [  # noqa: RUF022 - in order of importance
    "Migration",
    "MigrationPlan",
    "MigrationResult",
    "restore",
    "find_obstacles",
    "Difference",
    "recover_postcopy",
    "toggle",
    "Toggled",
    "CprTransferMigration",
    "Precopy",
    "Postcopy",
    "BackgroundSnapshot",
    "CprReboot",
    "CprTransfer",
    "Kind",
    "Channel",
    "Command",
    "Unix",
    "AbstractUnix",
    "Tcp",
    "Fd",
    "Exec",
    "File",
    "Multifd",
    "Compression",
    "Xbzrle",
    "MappedRam",
    "ZeroPage",
    "Tls",
    "AutoConverge",
    "DirtyLimit",
    "AbortRules",
    "Goal",
    "GoalThen",
    "GoalOutcome",
    "GoalDecision",
    "GoalAction",
    "GoalFigures",
    "Timeline",
    "Iteration",
    "Sample",
    "Totals",
    "Downtime",
    "GuestDowntime",
    "firmware_writes",
    "MigrationOutcome",
    "GuestAt",
    "MigrationError",
    "MigrationCancelledError",
    "MigrationAbortedError",
    "PostcopyPausedError",
    "EndedEarlyError",
    "PlanError",
    "HeldPrecopy",
    "Pace",
]
