"""`qemu-ring prove`: parsing and printing."""

from __future__ import annotations

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
from qemu_ring.cli.frame.numbers import COUNT, Number, Whole
from qemu_ring.cli.frame.options import answer_timeout_option, in_options, json_option, qemu_option
from qemu_ring.cli.frame.output import Reminder, print_json, print_stale_pages, progress_bar
from qemu_ring.cli.frame.running import run
from qemu_ring.cli.frame.sizes import SECONDS
from qemu_ring.dirty import Tracking
from qemu_ring.guest import MAX_VCPUS
from qemu_ring.machine import find_qemu
from qemu_ring.memslot import FlushPolicy, Shape
from qemu_ring.prove import Control, ProveOptions, ProveResult, ProveVerdict, Writer, prove
from qemu_ring.prove import ProveProgress as State

__all__ = ["prove_command"]

_OPTIONS = {"pages_per_second": "--rate", "shapes": "--shape"}
"""By fields of the options."""


@click.command("prove")
@qemu_option("QEMU to test; default: the one `build` made, else qemu-system-x86_64 on PATH.")
@tracking_option
@click.option("--removals", type=COUNT, metavar="N", help="Stop after N removals of slots.")
@click.option(
    "--seconds", type=SECONDS, metavar="S", help="Begin no round after S seconds; default: 10."
)
@click.option("--rounds", type=COUNT, metavar="N", help="Stop after N rounds.")
@click.option(
    "--vcpus",
    type=Whole(1, MAX_VCPUS),
    metavar="N",
    default=1,
    show_default=True,
    help="vCPUs that write.",
)
@click.option(
    "--rate",
    type=Number(1000, 1e9),
    metavar="R",
    default=100_000,
    show_default=True,
    help="Pages a second that all vCPUs write; slower means more removals a round.",
)
@click.option(
    "--writer",
    type=click.Choice([writer.value for writer in Writer]),
    default=Writer.VCPU.value,
    show_default=True,
    help="Who writes into the slots: the guest, or a device whose back end is another process'.",
)
@click.option(
    "--machine", type=click.Choice(["pc", "q35"]), default="pc", show_default=True, help="Machine."
)
@click.option(
    "--policy",
    type=FLUSH_POLICIES,
    help="How slots are removed; needs a patched QEMU.",
)
@click.option(
    "--shape",
    "shapes",
    multiple=True,
    type=click.Choice([shape.value for shape in Shape]),
    help="How slots go and come back, one a round in turn; default: all that the QEMU can do.",
)
@click.option("--until-loss", is_flag=True, help="Stop at the first stale page; tell the time.")
@click.option(
    "--control",
    type=click.Choice([control.value for control in Control]),
    help="Run a control that must find nothing.",
)
@click.option(
    "--memory-dir",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Where guest memory lives, such as /dev/shm; default: memory without a name.",
)
@log_directory_option
@answer_timeout_option
@json_option
def prove_command(
    qemu: str | None,
    tracking: str,
    removals: int | None,
    seconds: float | None,
    rounds: int | None,
    vcpus: int,
    rate: float,
    writer: str,
    machine: str,
    policy: str | None,
    shapes: tuple[str, ...],
    until_loss: bool,
    control: str | None,
    memory_dir: Path | None,
    log_dir: Path | None,
    as_json: bool,
) -> int:
    """Show whether a QEMU loses dirty bits when memory slots go away.

    Starts a guest, migrates it live again and again while its memory slots are removed
    and added, and compares all memory byte for byte. Exits with 1 if a page was stale.
    """
    with in_options(_OPTIONS):
        options = ProveOptions(
            tracking=Tracking.parse(tracking),
            machine=machine,
            vcpus=vcpus,
            pages_per_second=rate,
            seconds=seconds,
            removals=removals,
            rounds=rounds,
            until_loss=until_loss,
            control=None if control is None else Control(control),
            writer=Writer(writer),
            policy=None if policy is None else FlushPolicy(policy),
            shapes=tuple(map(Shape, shapes)),
            memory_directory=memory_dir,
            log_directory=log_dir,
        )
    binary = find_qemu(qemu)
    with _progress(options) as show:
        result = run(prove(binary, options, on_progress=show))
    if as_json:
        print_json(result.as_dict())
    else:
        _print_verdict(result)
    return int(result.exit_status)


@contextmanager
def _progress(options: ProveOptions) -> Iterator[Callable[[State], None]]:
    """A bar on standard error, gone when done; if that is no terminal, a line now and then."""
    total = 1.0 if options.until_loss else None
    with progress_bar() as bar:
        task = bar.add_task("starting the guest", total=total)
        reminder = Reminder()

        def show(state: State) -> None:
            stale = f"[bold red]{state.stale_pages:,}[/]" if state.stale_pages else "0"
            counts = f"{state.removals:,} removals, {state.rounds} migrations"
            bar.update(
                task,
                total=1.0,
                completed=0.0 if options.until_loss else _done(options, state),
                description=f"{stale} stale pages, {counts}",
            )
            reminder.tell(
                f"{state.stale_pages:,} stale pages, {counts} in {state.seconds:.0f} s, goes on"
            )

        yield show


def _done(options: ProveOptions, state: State) -> float:
    """How much of the run is over, 0 to 1: whichever limit is nearer."""
    parts = [0.0]
    if options.time_limit is not None:
        parts.append(state.seconds / options.time_limit)
    if options.rounds is not None:
        parts.append(state.rounds / options.rounds)
    if options.removals is not None:
        parts.append(state.removals / options.removals)
    return min(1.0, max(parts))


def _print_verdict(result: ProveResult) -> None:
    verdict = ProveVerdict.of(result)
    console = Console(highlight=False, soft_wrap=False)
    console.print(Text(verdict.headline, style="bold red" if result.stale_pages else "bold green"))
    for paragraph in verdict.meaning:
        console.print()
        console.print(Text(paragraph))
    print_stale_pages(console, verdict.pages)
    console.print()
    console.print(
        Text(
            f"{result.seconds:.1f} s; the guest wrote {result.first_write_seconds * 1000:.0f} ms "
            f"after QEMU's start; kernel {result.host.kernel}, {result.host.cpu_model}; "
            f"KVM's vendor module: {result.host.kvm_in_words}."
        )
    )
