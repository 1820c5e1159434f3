"""`qemu-ring torture`: parsing and printing."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import click
from rich.console import Console
from rich.text import Text

from qemu_ring.cli.frame.guest_options import (
    FLUSH_POLICIES,
    log_directory_option,
    tracking_option,
)
from qemu_ring.cli.frame.numbers import COUNT, Whole
from qemu_ring.cli.frame.options import answer_timeout_option, in_options, json_option, qemu_option
from qemu_ring.cli.frame.output import Reminder, print_json, print_stale_pages, progress_bar
from qemu_ring.cli.frame.running import run
from qemu_ring.cli.frame.sizes import SECONDS
from qemu_ring.dirty import Tracking
from qemu_ring.errors import UsageError
from qemu_ring.machine import find_qemu
from qemu_ring.memslot import FlushPolicy
from qemu_ring.torture import (
    MAX_TORTURED_VCPUS,
    Only,
    ReplayResult,
    Reproducer,
    TortureFinding,
    TortureOptions,
    TortureProgress,
    TortureResult,
    replay,
    torture,
)

__all__ = ["torture_command"]

_SHOWN_PAGES = 8
_qemu_option = qemu_option("QEMU to test; default: the one `build` made, else the first on PATH.")


@click.group("torture", invoke_without_command=True)
@_qemu_option
@click.option(
    "--seconds",
    type=SECONDS,
    default=60.0,
    show_default=True,
    metavar="S",
    help="Begin no further program after S seconds.",
)
@click.option(
    "--seed",
    type=Whole(0, (1 << 63) - 1),
    metavar="N",
    help="Of the programs; default: another one each time, which is told.",
)
@click.option(
    "--only",
    type=click.Choice([only.value for only in Only]),
    default=Only.ALL.value,
    show_default=True,
    help="`cancels`: migrations that are cancelled or fail, then one that completes.",
)
@click.option(
    "--cancels", type=COUNT, metavar="N", help="Stop after N migrations that did not complete."
)
@click.option(
    "--policy",
    type=FLUSH_POLICIES,
    help="How slots are removed, throughout; needs a patched QEMU. Default: those that lose "
    "nothing, in turn.",
)
@tracking_option
@click.option(
    "--vcpus",
    type=Whole(1, MAX_TORTURED_VCPUS),
    metavar="N",
    default=2,
    show_default=True,
    help="vCPUs that write.",
)
@click.option(
    "--shrink-seconds",
    type=SECONDS,
    default=120.0,
    show_default=True,
    metavar="S",
    help="How long a program that failed may be shrunk.",
)
@click.option(
    "--output",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Where a program that failed is written; default: torture-SEED.json here.",
)
@log_directory_option
@answer_timeout_option
@json_option
@click.pass_context
def torture_command(
    context: click.Context,
    qemu: str | None,
    seconds: float,
    seed: int | None,
    only: str,
    cancels: int | None,
    policy: str | None,
    tracking: str,
    vcpus: int,
    shrink_seconds: float,
    output: Path | None,
    log_dir: Path | None,
    as_json: bool,
) -> int:
    """Try to make a QEMU lose a page, crash or hang, by random programs.

    Takes guests through memory slots that go away and come back, resets, plugged vCPUs, and
    migrations to and fro, of all kinds, completed or cut off; compares all memory byte for byte
    after each migration, and looks after each step whether the guest goes on. Exits with 1 if
    something was found; the steps that matter are then in a file.
    """
    if context.invoked_subcommand is not None:
        return 0
    seed = secrets.randbelow(1 << 31) if seed is None else seed
    with in_options({}):
        options = TortureOptions(
            seconds=seconds,
            seed=seed,
            only=Only(only),
            tracking=Tracking.parse(tracking),
            policy=None if policy is None else FlushPolicy(policy),
            vcpus=vcpus,
            cancels=cancels,
            shrink_seconds=shrink_seconds,
            log_directory=log_dir,
        )
    output = output or Path(f"torture-{seed}.json")
    if not output.parent.is_dir():
        raise UsageError(f"{output.parent} is no directory", hint="name another --output")
    binary = find_qemu(qemu)
    with _progress(seconds) as show:
        result = run(torture(binary, options, output=output, on_progress=show))
    if as_json:
        print_json(result.as_dict())
    else:
        _print_result(result)
    return int(result.exit_status)


@torture_command.command("replay")
@click.argument("file", type=click.Path(path_type=Path))
@_qemu_option
@click.option(
    "--times",
    type=COUNT,
    default=20,
    show_default=True,
    metavar="N",
    help="Play it N times, unless it finds something before.",
)
@click.option(
    "--policy", type=FLUSH_POLICIES, help="How slots are removed; default: as the file says."
)
@log_directory_option
@answer_timeout_option
@json_option
def replay_command(
    file: Path,
    qemu: str | None,
    times: int,
    policy: str | None,
    log_dir: Path | None,
    as_json: bool,
) -> int:
    """Play a program that `torture` has written again.

    Exits with 1 if it finds something. With --log-dir QEMU's traces of memory slots and rings are
    in the logs.
    """
    reproducer = Reproducer.load(file)
    binary = find_qemu(qemu)
    with _progress(None) as show:
        result = run(
            replay(
                binary,
                reproducer,
                times=times,
                policy=None if policy is None else FlushPolicy(policy),
                log_directory=log_dir,
                on_progress=show,
            )
        )
    if as_json:
        print_json(result.as_dict())
    else:
        _print_replay(result)
    return int(result.exit_status)


@contextmanager
def _progress(seconds: float | None) -> Iterator[Callable[[TortureProgress], None]]:
    """A bar on standard error, gone when done; if that is no terminal, a line now and then."""
    with progress_bar() as bar:
        task = bar.add_task("starting", total=None)
        reminder = Reminder()

        def show(state: TortureProgress) -> None:
            said = (
                f"{state.removals:,} removals, {state.migrations:,} migrations, "
                f"{state.cancels:,} cancels"
            )
            if state.shrinking is not None:
                said = f"found something; shrinking, {state.shrinking} steps"
            total = None if seconds is None or state.shrinking is not None else seconds
            bar.update(task, total=total, completed=state.seconds, description=said)
            reminder.tell(f"{said} in {state.seconds:.0f} s, goes on")

        yield show


def _print_result(result: TortureResult) -> None:
    console = Console(highlight=False, soft_wrap=False)
    finding, totals = result.finding, result.totals
    options = result.options
    policy = "" if options.policy is None else f", policy {options.policy.value}"
    what = f"QEMU {result.probes.qemu.version} ({options.tracking}{policy})"
    if finding is None:
        headline = f"{what}: nothing found."
    else:
        headline = f"{what}: {_found(finding)}, after {result.finding_seconds:.1f} s."
    console.print(Text(headline, style="bold green" if finding is None else "bold red"))
    console.print()
    kinds = ", ".join(f"{count:,} {kind}" for kind, count in sorted(totals.migrations.items()))
    console.print(
        Text(
            f"{result.programs:,} programs with seed {options.seed}: {totals.removals:,} memory "
            f"slot removals, {result.migrations:,} migrations completed and compared"
            f"{f' ({kinds})' if kinds else ''}, and {totals.cancels:,} that were cancelled or "
            f"failed before one that completed; {result.seconds:.1f} s."
        )
    )
    bounds = [
        f"less than one {one} in {1 / bound:,.0f}"
        for one, bound in (("removal", result.removal_bound), ("cancel", result.cancel_bound))
        if bound is not None and bound < 1
    ]
    if bounds:
        console.print()
        console.print(
            Text(
                f"It means, at 95 %: {', and '.join(bounds)}, loses a page in programs like these."
            )
        )
    if result.probes.qemu.flush_policies:
        console.print()
        console.print(
            Text(
                f"QEMU counted {totals.pages_late:,} pages that best-effort would have lost, and "
                f"dropped {totals.entries_dropped:,} dirty ring entries."
            )
        )
    for words, count in totals.refused.items():
        console.print(Text(f"Not done {count} times: {words}."))
    if finding is not None:
        _print_finding(console, finding)
        assert result.program is not None
        console.print()
        again = "the steps that matter" if result.reproduced else "it did not happen again"
        console.print(Text(f"{len(result.program)} steps ({again}), in {result.reproducer}:"))
        for step in result.program:
            console.print(Text(f"  {step!r}"), soft_wrap=True)
        console.print()
        console.print(Text(f"Again: qemu-ring torture replay {result.reproducer}"), soft_wrap=True)
        if result.trace is not None:
            console.print(Text(f"QEMU's traces: {result.trace}"), soft_wrap=True)


def _print_replay(result: ReplayResult) -> None:
    console = Console(highlight=False, soft_wrap=False)
    finding, times = result.finding, f"{result.plays} time{'s' * (result.plays != 1)}"
    if finding is None:
        headline = f"QEMU {result.probes.qemu.version}: nothing found, played {times}."
    else:
        headline = f"QEMU {result.probes.qemu.version}: {_found(finding)}, played {times}."
    console.print(Text(headline, style="bold green" if finding is None else "bold red"))
    if finding is not None:
        _print_finding(console, finding)


def _found(finding: TortureFinding) -> str:
    return f"{finding.kind.value}: {finding.message}"


def _print_finding(console: Console, finding: TortureFinding) -> None:
    lines = [str(page) for page in finding.stale[:_SHOWN_PAGES]]
    if finding.stale_pages > len(lines) > 0:
        lines.append(f"and {finding.stale_pages - len(lines):,} more")
    print_stale_pages(console, lines)
