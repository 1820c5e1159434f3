from .dirty import (
    Tracking as Tracking,
    measure_dirty_rate as measure_dirty_rate,
    query_tracking as query_tracking,
    set_dirty_limit as set_dirty_limit,
)
from .errors import (
    HostError as HostError,
    QemuRingError as QemuRingError,
    UsageError as UsageError,
)
from .experiment import (
    compare_results as compare_results,
    load_experiment as load_experiment,
    read_results as read_results,
    run_experiment as run_experiment,
)
from .guestfile import (
    RunningGuest as RunningGuest,
    load_guest as load_guest,
    parse_guest as parse_guest,
    start_guest as start_guest,
    start_guests as start_guests,
)
from .machine import (
    Machine as Machine,
    MachineDescription as MachineDescription,
    find_qemu as find_qemu,
    probe_host as probe_host,
)
from .memslot import (
    FlushPolicy as FlushPolicy,
    query_flush as query_flush,
    query_memslots as query_memslots,
    query_rings as query_rings,
    set_flush_policy as set_flush_policy,
)
from .migration import (
    AbortRules as AbortRules,
    Goal as Goal,
    GuestDowntime as GuestDowntime,
    HeldPrecopy as HeldPrecopy,
    Migration as Migration,
    MigrationAbortedError as MigrationAbortedError,
    MigrationError as MigrationError,
    MigrationPlan as MigrationPlan,
    MigrationResult as MigrationResult,
    Multifd as Multifd,
    Pace as Pace,
    Postcopy as Postcopy,
    PostcopyPausedError as PostcopyPausedError,
    Precopy as Precopy,
    recover_postcopy as recover_postcopy,
    restore as restore,
    toggle as toggle,
)
from .report import (
    write_report as write_report,
)

__version__: str
