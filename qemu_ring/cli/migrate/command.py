"""`qemu-ring migrate`: parsing and printing."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AsyncExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, get_args

import click
from rich.console import Console
from rich.table import Table

from qemu_ring.cli.frame.attached import attached, document
from qemu_ring.cli.frame.numbers import COUNT, Whole
from qemu_ring.cli.frame.options import answer_timeout_option, json_option
from qemu_ring.cli.frame.output import notes, print_json, progress_bar
from qemu_ring.cli.frame.running import run
from qemu_ring.cli.frame.sizes import RATE, SECONDS, SIZE, Duration
from qemu_ring.cli.migrate.plan_options import (
    plan_of,
    require_new_file,
    require_saved_guest,
    require_two_guests,
    saved_in,
)
from qemu_ring.dirty import stall_message
from qemu_ring.errors import ExitStatus, UsageError
from qemu_ring.migration import (
    Channel,
    Compression,
    Difference,
    Downtime,
    GoalDecision,
    GoalOutcome,
    GoalThen,
    GuestAt,
    Migration,
    MigrationAbortedError,
    MigrationOutcome,
    MigrationPlan,
    MigrationResult,
    Sample,
    ZeroPage,
    find_obstacles,
    recover_postcopy,
    restore,
)
from qemu_ring.migration.control import control_socket
from qemu_ring.qmp import commands

__all__ = ["migrate"]

_SHOWN_ITERATIONS = 30
_WHERE = (GuestAt.SOURCE, GuestAt.DESTINATION, GuestAt.NOWHERE)
_MIB = 1 << 20
_MEASURED_SECONDS = 1.0
"""Of a pass, from which on QEMU measures how fast the guest dirtied memory in it."""
_KINDS = ("precopy", "postcopy", "background-snapshot", "cpr-reboot")


@click.command()
@click.argument("source", metavar="SOURCE")
@click.argument("destination", metavar="[DESTINATION]", required=False)
@click.option("--to-file", type=click.Path(path_type=Path), help="Save the guest to this file.")
@click.option("--overwrite", is_flag=True, help="Replace the file if it is there already.")
@click.option(
    "--from-file",
    type=click.Path(path_type=Path),
    help="Bring the guest back from this file, to the QEMU at SOURCE, which waits for it.",
)
@click.option(
    "--to-command",
    metavar="COMMAND",
    help="Save the guest to a shell command that reads it, such as 'zstd -qo guest.zst'.",
)
@click.option(
    "--from-command",
    metavar="COMMAND",
    help="Bring it back from one that writes it, such as 'zstd -dqc guest.zst'.",
)
@click.option("--kind", type=click.Choice(_KINDS), default="precopy", show_default=True)
@click.option(
    "--channel",
    metavar="CHANNEL",
    help="fd, unix, unix:PATH, unix:@NAME, tcp:HOST:PORT (port 0: any), or exec:COMMAND.  "
    "[default: fd, or unix for several connections]",
)
@click.option(
    "--listen",
    metavar="HOST[:PORT]",
    help="For tcp: where the destination listens, if the source reaches it by another address.",
)
@click.option("--exec-incoming", metavar="COMMAND", help="For exec: what the destination runs.")
@click.option(
    "--max-bandwidth", type=RATE, metavar="RATE", help="Bytes a second, at most; 0: no limit."
)
@click.option(
    "--switchover-bandwidth",
    type=RATE,
    metavar="RATE",
    help="Bytes a second to reckon with for the switchover; QEMU 8.2.",
)
@click.option(
    "--downtime-limit",
    type=Duration(),
    metavar="TIME",
    help="Of standstill, at most; seconds, or such as 300ms.",
)
@click.option(
    "--multifd", type=Whole(1, 255), metavar="N", help="Send pages by N connections, 1 to 255."
)
@click.option("--compression", type=click.Choice(get_args(Compression)), help="Of multifd.")
@click.option(
    "--compression-level", type=Whole(0, 20), metavar="N", help="zlib: 0 to 9; zstd: 0 to 20."
)
@click.option(
    "--zero-copy", is_flag=True, help="For multifd by tcp: let the kernel send pages uncopied."
)
@click.option("--xbzrle", type=SIZE, metavar="SIZE", help="Send differences; the cache's size.")
@click.option("--mapped-ram", is_flag=True, help="Give each page its place in the file.")
@click.option("--direct-io", is_flag=True, help="For mapped-ram: past the page cache.")
@click.option("--zero-page", type=click.Choice(get_args(ZeroPage)), help="Who finds zero pages.")
@click.option("--auto-converge", is_flag=True, help="Throttle all vCPUs until it converges.")
@click.option("--dirty-limit", type=RATE, metavar="RATE", help="Throttle each vCPU to this rate.")
@click.option(
    "--postcopy-after", type=COUNT, metavar="N", help="Switch to postcopy after N passes."
)
@click.option("--preempt", is_flag=True, help="Give postcopy a channel for urgent pages.")
@click.option("--switchover-ack", is_flag=True, help="Let the destination agree to the switchover.")
@click.option("--tls-dir", type=click.Path(path_type=Path), help="Certificates; encrypts.")
@click.option("--tls-hostname", metavar="NAME", help="The destination's, in its certificate.")
@click.option("--abort-seconds", type=SECONDS, metavar="TIME", help="Cancel it after that time.")
@click.option("--abort-iterations", type=COUNT, metavar="N", help="Cancel it after N passes.")
@click.option(
    "--abort-no-progress", type=COUNT, metavar="N", help="Cancel after N passes without progress."
)
@click.option(
    "--within",
    type=SECONDS,
    metavar="TIME",
    help="Converge within this time; see --downtime and --then.",
)
@click.option(
    "--downtime",
    type=Duration(0.001, 2000),
    metavar="TIME",
    help="With --within: standstill, at most, allowed step by step.  [default: 300ms]",
)
@click.option(
    "--then",
    type=click.Choice(get_args(GoalThen)),
    help="With --within: what is done when that does not suffice.  [default: throttle]",
)
@click.option(
    "--postcopy-bandwidth",
    type=RATE,
    metavar="RATE",
    help="Bytes a second, at most, after a switchover to postcopy; 0: no limit.",
)
@click.option("--verify", is_flag=True, help="Compare all memory before the guest goes on.")
@click.option(
    "--if-stale",
    type=click.Choice([one.value for one in _WHERE]),
    default=GuestAt.SOURCE.value,
    show_default=True,
    help="Where the guest goes on if --verify finds stale pages.",
)
@click.option("--check", is_flag=True, help="Tell all that is in its way, and start nothing.")
@click.option(
    "--recover",
    is_flag=True,
    help="See a migration to its end whose controller is gone, or postcopy's channel.",
)
@click.option(
    "--control",
    type=click.Path(path_type=Path),
    metavar="SOCKET",
    help="Make this socket, for qemu-ring control to change the migration.",
)
@click.option("--leave-paused", is_flag=True, help="Leave the guest paused at the destination.")
@answer_timeout_option
@json_option
def migrate(
    source: str,
    destination: str | None,
    to_file: Path | None,
    from_file: Path | None,
    to_command: str | None,
    from_command: str | None,
    overwrite: bool,
    recover: bool,
    control: Path | None,
    as_json: bool,
    **options: Any,
) -> int:
    """Migrate, save or restore a guest.

    SOURCE is its QMP monitor, a socket's path, @NAME or HOST:PORT.
    DESTINATION is the monitor of a QEMU that was started with -incoming defer. Neither QEMU
    is ended. A guest that is not migrated goes on at the source, Ctrl-C included.
    """
    ways = (destination, to_file, from_file, to_command, from_command)
    if sum(one is not None for one in ways) != 1:
        raise UsageError(
            "name a DESTINATION, --to-file FILE, --to-command COMMAND, --from-file FILE or "
            "--from-command COMMAND, one of them"
        )
    restores = from_file is not None or from_command is not None
    if options["check"] and (restores or recover):
        raise UsageError("--check is for a migration that is to begin, or that saves")
    if overwrite and to_file is None:
        raise UsageError("--overwrite needs --to-file")
    if control is not None and (recover or restores):
        raise UsageError("--control is for a migration from its start, or for saving")
    monitors = {"source": source, "destination": destination}
    command = to_command if from_command is None else from_command
    saved = saved_in(to_file or from_file, command)
    plan = plan_of(options | monitors, saved)
    verify = bool(options["verify"])
    if verify and destination is None:
        raise UsageError("--verify needs a destination whose memory can be compared")
    if destination is not None:
        require_two_guests(source, destination)
    if options["check"]:
        return _tell_obstacles(*run(_check(source, destination, plan)), as_json=as_json)
    if to_file is not None:
        require_new_file(to_file, overwrite=overwrite)
    if from_file is not None:
        require_saved_guest(from_file)
    if restores:
        what, seconds, state = run(_restore(source, plan))
        words = plan.channel.words
        if as_json:
            print_json(document("restore", what, channel=words, seconds=seconds, state=state))
        else:
            click.echo(f"restored from {words} in {seconds:.2f} s; the guest is {state}")
        return ExitStatus.GOOD
    if recover:
        if destination is None:
            raise UsageError("--recover needs the DESTINATION where the guest runs")
        if verify:
            raise UsageError(
                "--recover lets the guest go on as soon as it can: nothing is verified"
            )
        named = None if options["channel"] is None else plan.channel
        outcome, abouts = run(_recover(source, destination, named, plan.leave_paused))
        if as_json:
            found = asdict(outcome) | {"guest_at": outcome.guest_at.value}
            content = {"destination_qemu": abouts[1], "aftermath": found}
            print_json(document("recover", abouts[0], **content))
        else:
            click.echo(f"the migration is completed; {outcome}")
        return ExitStatus.GOOD
    with _progress() as show:
        ended = run(_migrate(source, destination, plan, verify, control, show))
    if isinstance(ended, _NotCompleted):
        if as_json:
            goal = ended.goal.as_dict()
            print_json(document("migrate", ended.source, status="cancelled", goal=goal))
        raise ended.error
    if as_json:
        print_json(document("migrate", ended.source, **ended.rest, **ended.result.as_dict()))
    else:
        _print(ended.result, ended.not_compared)
    stalled = ended.result.stalled
    if stalled:
        notes.print(f"at the source, {stall_message(stalled)}", soft_wrap=True)
    return ExitStatus.GOOD if _is_good(ended.result) else ExitStatus.BAD


def _is_good(result: MigrationResult) -> bool:
    equal = not result.stalled if result.comparison is None else result.comparison.equal
    return equal and (result.goal is None or result.goal.kept)


@dataclass(frozen=True, slots=True)
class _Outcome:
    result: MigrationResult
    source: dict[str, object]
    rest: dict[str, object]
    not_compared: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class _NotCompleted:
    """A migration that was given up because it would not keep to its goal."""

    error: MigrationAbortedError
    goal: GoalOutcome
    source: dict[str, object]


async def _migrate(
    source: str,
    destination: str | None,
    plan: MigrationPlan,
    verify: bool,
    control: Path | None,
    show: Callable[[Sample], None],
) -> _Outcome | _NotCompleted:
    async with AsyncExitStack() as stack:
        sides = [await stack.enter_async_context(attached(source, "source"))]
        if destination is not None:
            sides.append(await stack.enter_async_context(attached(destination, "destination")))
        machines = [side.machine for side in sides]
        second = machines[1] if len(machines) > 1 else None
        controls = None
        if control is not None:
            controls = await stack.enter_async_context(control_socket(control))
        migration = Migration(
            machines[0], second, plan, verify=verify, on_sample=show, on_decision=_tell
        )
        try:
            async with migration:
                for one in migration.differences:
                    notes.print(f"note: {one}", soft_wrap=True, markup=False)
                if controls is not None:
                    controls.migration = migration
                result = await migration.complete()
        except MigrationAbortedError as error:
            if migration.goal_outcome is None:
                raise
            return _NotCompleted(error, migration.goal_outcome, sides[0].qemu)
    rest: dict[str, object] = {}
    if second is not None:
        rest = {
            "destination_qemu": sides[1].qemu,
            "differences": [asdict(one) for one in migration.differences],
            "not_compared": migration.not_compared,
        }
    return _Outcome(result, sides[0].qemu, rest, migration.not_compared)


def _tell_obstacles(
    found: Sequence[Difference], qemu: dict[str, object], *, as_json: bool
) -> ExitStatus:
    if as_json:
        print_json(document("migrate-check", qemu, obstacles=[asdict(one) for one in found]))
    else:
        for one in found:
            click.echo(f"{'it would fail: ' if one.fatal else 'it differs: '}{one}")
        if not found:
            click.echo("nothing is in the way")
    return ExitStatus.BAD if any(one.fatal for one in found) else ExitStatus.GOOD


async def _check(
    source: str, destination: str | None, plan: MigrationPlan
) -> tuple[tuple[Difference, ...], dict[str, object]]:
    """What is in the way, and what QEMU the source is."""
    async with AsyncExitStack() as stack:
        first = await stack.enter_async_context(attached(source, "source"))
        other = None
        if destination is not None:
            second = await stack.enter_async_context(attached(destination, "destination"))
            other = second.machine.monitor
        return await find_obstacles(first.machine.monitor, other, plan), first.qemu


async def _recover(
    source: str, destination: str, channel: Channel | None, leave_paused: bool
) -> tuple[MigrationOutcome, list[dict[str, object]]]:
    """How both sides were found when it had completed, and what they are."""
    async with (
        attached(source, "source") as first,
        attached(destination, "destination") as second,
    ):
        outcome = await recover_postcopy(
            first.machine, second.machine, channel, leave_paused=leave_paused
        )
        return outcome, [first.qemu, second.qemu]


async def _restore(at: str, plan: MigrationPlan) -> tuple[dict[str, object], float, str]:
    """The QEMU, how long it took, and the run state of the guest."""
    async with attached(at, "destination") as guest:
        seconds = await restore(guest.machine, plan)
        status = await commands.query_status(guest.machine.monitor)
        return guest.qemu, seconds, status.status


def _tell(decision: GoalDecision) -> None:
    notes.print(f"qemu-ring: {decision}", soft_wrap=True, markup=False)


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
                description=_in_short(sample),
            )

        yield show


def _in_short(sample: Sample) -> str:
    """In a line of 80 columns, with a bar and a clock."""
    what = f"pass {sample.iteration}" if sample.status == "active" else str(sample.status)
    rates = f"{sample.bandwidth / _MIB:,.0f} MiB/s sent"
    if sample.dirty_rate:  # QEMU tells 0 until it has measured one
        rates += f", {sample.dirty_rate / _MIB:,.0f} dirtied"
    return f"{what}: {sample.remaining / _MIB:,.0f} MiB left, {rates}"


def _mib(count: float | None) -> str:
    return "" if count is None else f"{count / _MIB:,.1f}"


def _ms(seconds: float | None) -> str:
    return "unknown" if seconds is None else f"{seconds * 1000:,.0f} ms"


def _unsure(downtime: Downtime) -> str:
    if not downtime.uncertainty_seconds:
        return ""
    return f" (+-{math.ceil(downtime.uncertainty_seconds * 1000)} ms: not known to be on one host)"


def _print(result: MigrationResult, not_compared: Sequence[str]) -> None:
    console = Console(highlight=False)
    console.print(
        f"{result.kind} over {result.channel}: {result.status} in {result.seconds:.2f} s, "
        f"{_mib(result.totals.bytes_sent)} MiB sent; {result.outcome}",
        soft_wrap=True,
    )
    if result.totals.pages_absorbed:  # 0 by bitmap: there it is KVM that absorbs
        console.print(
            f"{result.totals.pages_absorbed:,} pages were dirty again when they were sent, and "
            "were not sent once more for that",
            soft_wrap=True,
        )
    downtime = result.downtime
    if downtime.switchover_seconds is not None:
        console.print(
            f"downtime: {_ms(downtime.seconds)}{_unsure(downtime)} from STOP to RESUME, of it "
            f"{_ms(downtime.switchover_seconds)} for the switchover; QEMU's own figure: "
            f"{_ms(downtime.qemu_seconds)}",
            soft_wrap=True,
        )
    if result.goal is not None:
        goal = result.goal.goal
        words = f"goal: {goal.within:g} s and {_ms(goal.downtime)} of downtime: "
        console.print(
            words + ("kept" if result.goal.kept else f"NOT kept: {result.goal.reason}"),
            soft_wrap=True,
        )
    if result.comparison is not None:
        stale = result.comparison.pages_stale_total
        console.print(
            f"memory: {_mib(result.comparison.bytes_total)} MiB compared, "
            + (f"{stale:,} pages are STALE" if stale else "all equal")
        )
        for page in result.comparison.excused:
            console.print(f"not counted: page {page.page:,} of {page.block}: {page.reason}")
    if not_compared:
        console.print(
            f"not compared, as this QEMU does not tell where it is: {', '.join(not_compared)}",
            soft_wrap=True,
        )
    if result.problem:
        console.print(result.problem, soft_wrap=True)
    _print_iterations(console, result)


def _print_iterations(console: Console, result: MigrationResult) -> None:
    iterations = result.timeline.iterations
    table = Table(box=None, pad_edge=False)
    for heading in ("pass", "ms", "MiB to send", "MiB sent", "MiB/s", "MiB/s dirtied", "throttle"):
        table.add_column(heading, justify="right")
    measured = {one.number + 1 for one in iterations if one.seconds > _MEASURED_SECONDS}
    for one in iterations[-_SHOWN_ITERATIONS:]:
        dirtied = one.dirty_rate if one.dirty_rate or one.number in measured else None
        table.add_row(
            str(one.number),
            f"{one.seconds * 1000:,.0f}",
            *map(_mib, (one.remaining, one.bytes_sent, one.bandwidth, dirtied)),
            "" if one.throttle is None else f"{one.throttle}%",
        )
    if len(iterations) > _SHOWN_ITERATIONS:
        console.print(f"the last {_SHOWN_ITERATIONS} of {len(iterations)} passes:")
    console.print(table)
