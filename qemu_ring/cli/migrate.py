"""`qemu-ring migrate`: parsing and printing."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast, get_args

import click
from rich.console import Console
from rich.table import Table

from qemu_ring.cli.attached import document, json_option
from qemu_ring.cli.output import print_json, progress_bar
from qemu_ring.cli.running import run
from qemu_ring.cli.sizes import parse_size
from qemu_ring.errors import ExitStatus, UsageError
from qemu_ring.machine import Machine
from qemu_ring.migration import (
    AbortRules,
    AutoConverge,
    BackgroundSnapshot,
    Channel,
    Compression,
    CprReboot,
    DirtyLimit,
    Exec,
    Fd,
    File,
    Kind,
    MappedRam,
    Migration,
    MigrationPlan,
    MigrationResult,
    Multifd,
    Postcopy,
    Precopy,
    Sample,
    Tcp,
    Tls,
    Unix,
    Xbzrle,
    ZeroPage,
    restore,
)
from qemu_ring.migration.blocks import opened_blocks
from qemu_ring.qmp import Address, commands

__all__ = ["migrate"]

_SHOWN_ITERATIONS = 30
_KINDS = ("precopy", "postcopy", "background-snapshot", "cpr-reboot")


@click.command()
@click.argument("source", metavar="SOURCE")
@click.argument("destination", metavar="[DESTINATION]", required=False)
@click.option("--to-file", type=click.Path(path_type=Path), help="Save the guest to this file.")
@click.option(
    "--from-file",
    type=click.Path(path_type=Path),
    help="Bring the guest back from this file, to the QEMU at SOURCE, which waits for it.",
)
@click.option("--kind", type=click.Choice(_KINDS), default="precopy", show_default=True)
@click.option(
    "--channel",
    metavar="CHANNEL",
    help="unix, unix:PATH, tcp:HOST:PORT (port 0: any), fd, or exec:COMMAND.  [default: unix]",
)
@click.option("--exec-incoming", metavar="COMMAND", help="For exec: what the destination runs.")
@click.option("--max-bandwidth", callback=parse_size, metavar="SIZE", help="A second, at most.")
@click.option("--downtime-limit", type=float, metavar="S", help="Seconds of standstill, at most.")
@click.option("--multifd", type=int, metavar="N", help="Send pages by N connections.")
@click.option("--compression", type=click.Choice(get_args(Compression)), help="Of multifd.")
@click.option(
    "--xbzrle", callback=parse_size, metavar="SIZE", help="Send differences; the cache's size."
)
@click.option("--mapped-ram", is_flag=True, help="Give each page its place in the file.")
@click.option("--zero-page", type=click.Choice(get_args(ZeroPage)), help="Who finds zero pages.")
@click.option("--auto-converge", is_flag=True, help="Throttle all vCPUs until it converges.")
@click.option(
    "--dirty-limit", callback=parse_size, metavar="SIZE", help="Throttle each vCPU to this rate."
)
@click.option("--postcopy-after", type=int, metavar="N", help="Switch to postcopy after N passes.")
@click.option("--preempt", is_flag=True, help="Give postcopy a channel for urgent pages.")
@click.option("--switchover-ack", is_flag=True, help="Let the destination agree to the switchover.")
@click.option("--tls-dir", type=click.Path(path_type=Path), help="Certificates; encrypts.")
@click.option("--tls-hostname", metavar="NAME", help="The destination's, in its certificate.")
@click.option("--abort-seconds", type=float, metavar="S", help="Cancel it after S seconds.")
@click.option("--abort-iterations", type=int, metavar="N", help="Cancel it after N passes.")
@click.option(
    "--abort-no-progress", type=int, metavar="N", help="Cancel after N passes without progress."
)
@click.option("--verify", is_flag=True, help="Compare all memory before the guest goes on.")
@click.option("--leave-paused", is_flag=True, help="Leave the guest paused at the destination.")
@json_option
def migrate(
    source: str,
    destination: str | None,
    to_file: Path | None,
    from_file: Path | None,
    as_json: bool,
    **options: Any,
) -> int:
    """Migrate the guest whose QMP monitor is at SOURCE, a socket's path or HOST:PORT.

    DESTINATION is the monitor of a QEMU that was started with -incoming defer. Neither QEMU
    is ended. A guest that is not migrated goes on at the source, Ctrl-C included.
    """
    if sum(one is not None for one in (destination, to_file, from_file)) != 1:
        raise UsageError("name a DESTINATION, --to-file FILE or --from-file FILE, one of them")
    plan = _plan(options, to_file or from_file)
    verify = bool(options["verify"])
    if verify and destination is None:
        raise UsageError("--verify needs a destination whose memory can be compared")
    if from_file is not None:
        what, seconds, state = run(_restore(source, plan))
        words = plan.channel.words
        if as_json:
            print_json(document("restore", what, channel=words, seconds=seconds, state=state))
        else:
            click.echo(f"restored from {words} in {seconds:.2f} s; the guest is {state}")
        return ExitStatus.GOOD
    with _progress() as show:
        outcome = run(_migrate(source, destination, plan, verify, show))
    if as_json:
        print_json(document("migrate", outcome.source, **outcome.rest, **outcome.result.as_dict()))
    else:
        _print(outcome.result)
    comparison = outcome.result.comparison
    return ExitStatus.GOOD if comparison is None or comparison.equal else ExitStatus.BAD


@dataclass(frozen=True, slots=True)
class _Outcome:
    result: MigrationResult
    source: dict[str, object]
    rest: dict[str, object]


async def _migrate(
    source: str,
    destination: str | None,
    plan: MigrationPlan,
    verify: bool,
    show: Callable[[Sample], None],
) -> _Outcome:
    async with AsyncExitStack() as stack:
        first = await stack.enter_async_context(
            await Machine.attach(_address(source), name="source")
        )
        second = None
        if destination is not None:
            second = await stack.enter_async_context(
                await Machine.attach(_address(destination), name="destination")
            )
        about = [await _about(machine) for machine in (first, second) if machine is not None]
        blocks = []
        if verify and second is not None:
            blocks = await stack.enter_async_context(opened_blocks(first, second))
        async with Migration(first, second, plan, verify=blocks, on_sample=show) as migration:
            result = await migration.complete()
    rest: dict[str, object] = {"destination_qemu": about[1]} if second is not None else {}
    return _Outcome(result, about[0], rest)


async def _restore(at: str, plan: MigrationPlan) -> tuple[dict[str, object], float, str]:
    """The QEMU, how long it took, and the run state of the guest."""
    async with await Machine.attach(_address(at), name="destination") as machine:
        about = await _about(machine)
        seconds = await restore(machine, plan)
        return about, seconds, (await commands.query_status(machine.monitor)).status


async def _about(machine: Machine) -> dict[str, object]:
    monitor = machine.monitor
    patched = (await monitor.schema()).has_command("x-query-memslots")
    version = ".".join(map(str, monitor.version))
    return {"version": version, "package": monitor.package, "patched": patched}


def _address(text: str) -> Address:
    host, colon, port = text.rpartition(":")
    return (host, int(port)) if colon and port.isdecimal() and "/" not in text else text


def _plan(options: dict[str, Any], file: Path | None) -> MigrationPlan:
    """The options as a plan.

    Raises:
        UsageError: they contradict each other.
    """
    for needed, by in (
        ("multifd", "compression"),
        ("tls_dir", "tls_hostname"),
    ):
        if options[by] is not None and options[needed] is None:
            raise UsageError(f"--{_dashed(by)} needs --{_dashed(needed)}")
    if options["auto_converge"] and options["dirty_limit"] is not None:
        raise UsageError("--auto-converge and --dirty-limit are two ways to do one thing")
    throttle: AutoConverge | DirtyLimit | None = None
    if options["auto_converge"]:
        throttle = AutoConverge()
    elif options["dirty_limit"] is not None:
        throttle = DirtyLimit(options["dirty_limit"])
    multifd = None
    if options["multifd"] is not None:
        multifd = Multifd(options["multifd"], options["compression"] or "none")
    return MigrationPlan(
        kind=_kind(options),
        channel=_channel(options["channel"], options["exec_incoming"], file),
        multifd=multifd,
        xbzrle=None if options["xbzrle"] is None else Xbzrle(options["xbzrle"]),
        mapped_ram=MappedRam() if options["mapped_ram"] else None,
        tls=None
        if options["tls_dir"] is None
        else Tls(options["tls_dir"].absolute(), hostname=options["tls_hostname"]),
        throttle=throttle,
        zero_page=cast("ZeroPage | None", options["zero_page"]),
        max_bandwidth=options["max_bandwidth"],
        downtime_limit=options["downtime_limit"],
        switchover_ack=options["switchover_ack"],
        abort=AbortRules(
            seconds=options["abort_seconds"],
            iterations=options["abort_iterations"],
            no_progress_iterations=options["abort_no_progress"],
        ),
        leave_paused=options["leave_paused"],
    )


def _kind(options: dict[str, Any]) -> Kind:
    kind = options["kind"]
    if kind == "postcopy":
        after = options["postcopy_after"]
        return Postcopy(1 if after is None else after, preempt=options["preempt"])
    for name in ("postcopy_after", "preempt"):
        if options[name]:
            raise UsageError(f"--{_dashed(name)} needs --kind postcopy")
    plain: dict[str, Kind] = {
        "precopy": Precopy(),
        "background-snapshot": BackgroundSnapshot(),
        "cpr-reboot": CprReboot(),
    }
    return plain[kind]


def _channel(text: str | None, exec_incoming: str | None, file: Path | None) -> Channel:
    if file is not None:
        if text is not None:
            raise UsageError("a file is a channel of its own; leave out --channel")
        return File(file)
    kind, _, rest = (text or "unix").partition(":")
    if exec_incoming is not None and kind != "exec":
        raise UsageError("--exec-incoming needs --channel exec:COMMAND")
    host, _, port = rest.rpartition(":")
    match kind:
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
        f"no such channel: {text}", hint="use unix, unix:PATH, tcp:HOST:PORT, fd or exec:COMMAND"
    )


def _dashed(name: str) -> str:
    return name.replace("_", "-")


@contextmanager
def _progress() -> Iterator[Callable[[Sample], None]]:
    """A bar on standard error, gone when done; nothing if that is no terminal."""
    with progress_bar() as bar:
        task = bar.add_task("setting up", total=None)
        most = 1

        def show(sample: Sample) -> None:
            nonlocal most
            most = max(most, sample.remaining)
            bar.update(
                task,
                total=most,
                completed=most - sample.remaining,
                description=f"{sample.status}, pass {sample.iteration}: "
                f"{_mib(sample.remaining)} MiB left, {_mib(sample.bandwidth)} MiB/s sent, "
                f"{_mib(sample.dirty_rate)} MiB/s dirtied",
            )

        yield show


def _mib(count: float | None) -> str:
    return "" if count is None else f"{count / (1 << 20):,.1f}"


def _ms(seconds: float | None) -> str:
    return "unknown" if seconds is None else f"{seconds * 1000:,.0f} ms"


def _print(result: MigrationResult) -> None:
    console = Console(highlight=False)
    console.print(
        f"{result.kind} over {result.channel}: {result.status} in {result.seconds:.2f} s, "
        f"{_mib(result.totals.bytes_sent)} MiB sent; {result.aftermath}",
        soft_wrap=True,
    )
    downtime = result.downtime
    if downtime.switchover_seconds is not None:
        console.print(
            f"downtime: {_ms(downtime.seconds)} from STOP to RESUME, of it "
            f"{_ms(downtime.switchover_seconds)} for the switchover; QEMU's own figure: "
            f"{_ms(downtime.qemu_seconds)}",
            soft_wrap=True,
        )
    if result.comparison is not None:
        stale = result.comparison.pages_stale_total
        console.print(
            f"memory: {_mib(result.comparison.bytes_total)} MiB compared, "
            + (f"{stale:,} pages are STALE" if stale else "all equal")
        )
    _print_iterations(console, result)


def _print_iterations(console: Console, result: MigrationResult) -> None:
    iterations = result.timeline.iterations
    table = Table(box=None, pad_edge=False)
    for heading in ("pass", "ms", "MiB to send", "MiB sent", "MiB/s", "MiB/s dirtied", "throttle"):
        table.add_column(heading, justify="right")
    for one in iterations[-_SHOWN_ITERATIONS:]:
        table.add_row(
            str(one.number),
            f"{one.seconds * 1000:,.0f}",
            *map(_mib, (one.remaining, one.bytes_sent, one.bandwidth, one.dirty_rate)),
            "" if one.throttle is None else f"{one.throttle}%",
        )
    if len(iterations) > _SHOWN_ITERATIONS:
        console.print(f"the last {_SHOWN_ITERATIONS} of {len(iterations)} passes:")
    console.print(table)
