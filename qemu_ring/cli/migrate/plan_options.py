"""What the options of `qemu-ring migrate` ask for, as a plan; refused in the options' words."""

from __future__ import annotations

import stat
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

from qemu_ring.cli.frame.options import in_options, option_of
from qemu_ring.errors import UsageError
from qemu_ring.migration import (
    AbortRules,
    AbstractUnix,
    AutoConverge,
    BackgroundSnapshot,
    Channel,
    Command,
    Compression,
    CprReboot,
    DirtyLimit,
    Exec,
    Fd,
    File,
    Goal,
    GuestAt,
    Kind,
    MappedRam,
    MigrationPlan,
    Multifd,
    Postcopy,
    Precopy,
    Tcp,
    Tls,
    Unix,
    Xbzrle,
    ZeroPage,
)
from qemu_ring.migration.channels.channel import STREAM_MAGIC, local_channel
from qemu_ring.migration.needs import POSTCOPY, require_needed
from qemu_ring.qmp import parse_address

__all__ = ["plan_of", "require_new_file", "require_saved_guest", "require_two_guests", "saved_in"]

_OPTIONS = {
    POSTCOPY: "--kind postcopy",
    "kind.after_passes": "--postcopy-after",
    "goal.downtime": "--downtime",
    "goal.postcopy_bandwidth": "--postcopy-bandwidth",
    "goal.then": "--then",
    "goal.within": "--within",
    "kind.max_bandwidth": "--postcopy-bandwidth",
    "multifd.channels": "--multifd",
    "multifd.compression": "--compression",
    "multifd.level": "--compression-level",
    "throttle": "--auto-converge or --dirty-limit",
    "throttle.vcpu_limit": "--dirty-limit",
    "tls.hostname": "--tls-hostname",
    "tls.source_directory": "--tls-dir",
    "xbzrle.cache_size": "--xbzrle",
}
"""By the plan's fields; of others the option has the field's name."""
_ASKED = {
    "kind.after_passes": "postcopy_after",
    "kind.preempt": "preempt",
    "goal.within": "within",
    "goal.downtime": "downtime",
    "goal.then": "then",
    "multifd.channels": "multifd",
    "multifd.compression": "compression",
    "multifd.level": "compression_level",
    "multifd.zero_copy": "zero_copy",
    "mapped_ram": "mapped_ram",
    "mapped_ram.direct_io": "direct_io",
    "tls.source_directory": "tls_dir",
    "tls.hostname": "tls_hostname",
}
"""Options that need others, by the plan's fields."""


def saved_in(file: Path | None, command: str | None) -> Channel | None:
    """Where a guest is saved, or is restored from; None if it is migrated.

    Raises:
        UsageError: the command is empty.
    """
    if file is not None:
        return File(file)
    return None if command is None else Command(command)


def plan_of(options: dict[str, Any], saved: Channel | None) -> MigrationPlan:
    """The options as a plan.

    Args:
        options: of the command line.
        saved: as `saved_in` has it.

    Raises:
        UsageError: they contradict each other.
    """
    named = _channel(options["channel"], options["exec_incoming"], saved)
    channel = named or _default_channel(options)
    if options["listen"] is not None:
        channel = _listening(channel, options["listen"])
    given = {field for field, key in _ASKED.items() if options[key] not in (None, False)}
    if options["kind"] == "postcopy":
        given.add(POSTCOPY)
    with in_options(_OPTIONS):
        require_needed(given, lambda field: option_of(field, _OPTIONS))
        _check(options, channel)
        return _plan(options, channel)


def _plan(options: dict[str, Any], channel: Channel) -> MigrationPlan:
    throttle: AutoConverge | DirtyLimit | None = None
    if options["auto_converge"]:
        throttle = AutoConverge()
    elif options["dirty_limit"] is not None:
        throttle = DirtyLimit(options["dirty_limit"])
    multifd = None
    if options["multifd"] is not None:
        compression = cast("Compression", options["compression"] or "none")
        level, zero_copy = options["compression_level"], options["zero_copy"]
        multifd = Multifd(options["multifd"], compression, level, zero_copy)
    tls = options["tls_dir"]
    return MigrationPlan(
        kind=_kind(options),
        channel=channel,
        multifd=multifd,
        xbzrle=None if options["xbzrle"] is None else Xbzrle(options["xbzrle"]),
        mapped_ram=MappedRam(options["direct_io"]) if options["mapped_ram"] else None,
        tls=None if tls is None else Tls(tls.absolute(), hostname=options["tls_hostname"]),
        throttle=throttle,
        zero_page=cast("ZeroPage | None", options["zero_page"]),
        max_bandwidth=options["max_bandwidth"],
        downtime_limit=options["downtime_limit"],
        switchover_bandwidth=options["switchover_bandwidth"],
        switchover_ack=options["switchover_ack"],
        abort=AbortRules(
            seconds=options["abort_seconds"],
            iterations=options["abort_iterations"],
            no_progress_iterations=options["abort_no_progress"],
        ),
        goal=_goal(options),
        leave_paused=options["leave_paused"],
        if_stale=GuestAt(options["if_stale"]),
    )


def require_new_file(path: Path, *, overwrite: bool) -> None:
    """Check that a guest can be saved to a file, before it is saved.

    Raises:
        UsageError: it cannot, or a file that is there would be lost.
    """
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        if path.is_symlink():
            raise UsageError(
                f"--to-file {path} is a link to nothing", hint="name another file"
            ) from None
        if not path.absolute().parent.is_dir():
            raise UsageError(
                f"--to-file {path}: {path.parent} is no directory", hint="make it first"
            ) from None
        return
    except OSError as error:
        raise UsageError(f"--to-file {path}: {error.strerror}", hint="name another file") from error
    if not stat.S_ISREG(mode):
        what = "a directory" if stat.S_ISDIR(mode) else "no regular file"
        raise UsageError(f"--to-file {path} is {what}", hint="name another file")
    if not overwrite:
        raise UsageError(f"--to-file {path} is there already", hint="replace it with --overwrite")


def require_saved_guest(path: Path) -> None:
    """Check that a file can be one that a guest was saved to, before QEMU gets it.

    Raises:
        UsageError: it is not.
    """
    hint = "name one that qemu-ring migrate --to-file made"
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise UsageError(f"--from-file {path} is no regular file", hint=hint)
        with path.open("rb") as file:
            begins = file.read(len(STREAM_MAGIC))
    except OSError as error:
        raise UsageError(f"{path} cannot be opened: {error.strerror}", hint=hint) from error
    if begins != STREAM_MAGIC:
        raise UsageError(f"--from-file {path} holds no saved guest", hint=hint)


def require_two_guests(source: str, destination: str) -> None:
    """Check that the two monitors are not one: QEMU would keep the second connection waiting.

    Raises:
        UsageError: they are.
    """
    same = source == destination
    if not same:
        try:
            same = Path(source).samefile(destination)
        except OSError:
            return
    if same:
        raise UsageError(
            "source and destination are the same monitor",
            hint="name another QEMU's, started with -incoming defer",
        )


def _check(options: dict[str, Any], channel: Channel) -> None:
    """Refuse what cannot be, by the names of the options.

    Raises:
        UsageError: something cannot be.
    """
    if options["auto_converge"] and options["dirty_limit"] is not None:
        raise UsageError("--auto-converge and --dirty-limit are two ways to do one thing")
    if options["mapped_ram"] and not isinstance(channel, File):
        raise UsageError(
            "--mapped-ram goes to a file only", hint="name it with --to-file or --from-file"
        )
    if options["kind"] in ("background-snapshot", "cpr-reboot") and channel.bidirectional:
        raise UsageError(
            f"--kind {options['kind']} saves to a file", hint="name it with --to-file FILE"
        )
    if isinstance(channel, Exec) and channel.destination is None:
        raise UsageError(
            "the destination needs a command, too", hint="give it with --exec-incoming COMMAND"
        )
    if (
        options["tls_dir"] is not None
        and options["tls_hostname"] is None
        and channel.bidirectional
        and not isinstance(channel, Tcp)
    ):
        raise UsageError(
            f"TLS by {channel.words} needs the name in the destination's certificate",
            hint="give it with --tls-hostname NAME",
        )


def _goal(options: dict[str, Any]) -> Goal | None:
    if options["within"] is None:
        return None
    chosen: dict[str, Any] = {}
    if options["downtime"] is not None:
        chosen["downtime"] = options["downtime"]
    if options["then"] is not None:
        chosen["then"] = options["then"]
    return Goal(options["within"], postcopy_bandwidth=options["postcopy_bandwidth"], **chosen)


def _kind(options: dict[str, Any]) -> Kind:
    kind, bandwidth = options["kind"], options["postcopy_bandwidth"]
    if kind == "postcopy":
        after = options["postcopy_after"]
        return Postcopy(1 if after is None else after, options["preempt"], bandwidth)
    if bandwidth is not None and options["then"] != "postcopy":
        raise UsageError("--postcopy-bandwidth needs --kind postcopy or --then postcopy")
    plain: dict[str, Kind] = {
        "precopy": Precopy(),
        "background-snapshot": BackgroundSnapshot(),
        "cpr-reboot": CprReboot(),
    }
    return plain[kind]


def _listening(channel: Channel, text: str) -> Tcp:
    if not isinstance(channel, Tcp):
        raise UsageError("--listen needs --channel tcp:HOST:PORT")
    host, colon, port = text.rpartition(":")
    if not colon or (":" in host and not host.startswith("[")):
        host, port = text, ""
    if not host or (port and not port.isdecimal()):
        raise UsageError(
            f"--listen {text} is no address", hint="use HOST, HOST:PORT or [HOST]:PORT"
        )
    return replace(channel, listen=host.strip("[]"), listen_port=int(port) if port else None)


def _default_channel(options: dict[str, Any]) -> Channel:
    monitors = (options["source"], options["destination"])
    return local_channel(
        take_fds=all(one is not None and isinstance(parse_address(one), str) for one in monitors),
        several=options["multifd"] is not None or options["preempt"],
    )


def _channel(text: str | None, exec_incoming: str | None, saved: Channel | None) -> Channel | None:
    """What was asked for; None if nothing was."""
    if saved is not None:
        if text is not None:
            what = "a file" if isinstance(saved, File) else "a command"
            raise UsageError(f"{what} is a channel of its own; leave out --channel")
        if exec_incoming is not None:
            raise UsageError("--exec-incoming needs --channel exec:COMMAND")
        return saved
    if text is None and exec_incoming is None:
        return None
    kind, _, rest = (text or "").partition(":")
    if exec_incoming is not None and kind != "exec":
        raise UsageError("--exec-incoming needs --channel exec:COMMAND")
    host, _, port = rest.rpartition(":")
    match kind:
        case "unix" if rest.startswith("@"):
            return AbstractUnix(rest[1:])
        case "unix":
            return Unix(Path(rest).absolute() if rest else None)
        case "fd" if not rest:
            return Fd()
        case "exec" if rest:
            return Exec(rest, exec_incoming)
        case "tcp" if not rest:
            return Tcp()
        case "tcp" if host and port.isdecimal():
            return Tcp(host.strip("[]"), int(port))
    raise UsageError(
        f"no such channel: {text}",
        hint="use unix, unix:PATH, unix:@NAME, tcp:HOST:PORT, fd or exec:COMMAND",
    )
