"""`qemu-ring dirty-rate`: parsing and printing."""

from __future__ import annotations

import json
import time

import click

from qemu_ring.cli.frame.attached import Attached, attached, document, socket_argument
from qemu_ring.cli.frame.numbers import Whole
from qemu_ring.cli.frame.options import answer_timeout_option, in_options, json_option
from qemu_ring.cli.frame.output import notes, print_json
from qemu_ring.cli.frame.running import run
from qemu_ring.cli.frame.sizes import Duration, mib_per_second
from qemu_ring.dirty import (
    STALL_ADVICE,
    MeasuredRate,
    RateMode,
    RateOptions,
    RunningTracking,
    dirty_rates,
    measure_dirty_rate,
    query_tracking,
    stall_message,
)
from qemu_ring.errors import ExitStatus

__all__ = ["dirty_rate"]


@click.command("dirty-rate")
@socket_argument
@click.option(
    "--mode",
    type=click.Choice([mode.value for mode in RateMode]),
    help="How to measure; default: the most exact that the guest's tracking allows.",
)
@click.option(
    "--seconds",
    type=Duration(),
    metavar="S",
    default=1.0,
    show_default=True,
    help="For how long, 0.05 to 60; whole seconds before QEMU 8.2.",
)
@click.option(
    "--sample-pages",
    type=Whole(),
    metavar="N",
    help="For page-sampling: pages of each GiB, 128 to 16384; default: QEMU's 512.",
)
@click.option("--watch", is_flag=True, help="Measure again and again, until Ctrl-C.")
@answer_timeout_option
@json_option
def dirty_rate(
    socket: str,
    mode: str | None,
    seconds: float,
    sample_pages: int | None,
    watch: bool,
    as_json: bool,
) -> int:
    """Measure how fast a guest dirties memory.

    Its QMP monitor is at SOCKET, a path, @NAME or HOST:PORT.
    With --watch and --json, each measurement is a JSON document on a line of its own.
    Exits with 1 if a vCPU did not run, so that nothing can be said of it.
    """
    stalled: tuple[int, ...] = ()

    def note_stalled(rate: MeasuredRate) -> None:
        nonlocal stalled
        if rate.stalled and rate.stalled != stalled:
            notes.print(f"{stall_message(rate.stalled)}; {STALL_ADVICE}", soft_wrap=True)
        stalled = rate.stalled

    with in_options({}):
        chosen = None if mode is None else RateMode(mode)
        options = RateOptions(mode=chosen, seconds=seconds, sample_pages=sample_pages)

    async def once(guest: Attached) -> None:
        monitor = guest.machine.monitor
        tracking = await query_tracking(monitor)
        rate = await measure_dirty_rate(monitor, options)
        note_stalled(rate)
        if as_json:
            print_json(_document(rate, tracking, guest.qemu))
        else:
            click.echo(f"tracking: {tracking}")
            click.echo(
                f"dirty rate: {_in_words(rate)}, by {rate.mode.value} for {rate.seconds:g} s"
            )
            for one in rate.vcpus:
                click.echo(f"  vCPU {one.vcpu}: {mib_per_second(one.bytes_per_second)}")
            if why := _why_nothing(rate):
                click.echo(why)

    async def again_and_again(guest: Attached) -> None:
        monitor = guest.machine.monitor
        tracking = await query_tracking(monitor)
        async for rate in dirty_rates(monitor, options):
            note_stalled(rate)
            if as_json:
                click.echo(json.dumps(_document(rate, tracking, guest.qemu)))
            else:
                each = ", ".join(
                    f"vCPU {one.vcpu}: {mib_per_second(one.bytes_per_second)}" for one in rate.vcpus
                )
                line = f"{time.strftime('%X')}  {_in_words(rate)}{each and f'  ({each})'}"
                why = _why_nothing(rate)
                click.echo(f"{line}{why and f'; {why}'}")

    async def measured() -> None:
        async with attached(socket) as guest:
            await (again_and_again if watch else once)(guest)

    run(measured())
    return int(ExitStatus.BAD if stalled else ExitStatus.GOOD)


def _in_words(rate: MeasuredRate) -> str:
    return mib_per_second(rate.bytes_per_second)


def _why_nothing(rate: MeasuredRate) -> str:
    """Why a guest could write nothing, or less than it would; empty for one that ran."""
    if rate.run_state == "running":
        return ""
    return (
        f"the guest did not run all the time ({rate.run_state}): one that is stopped writes nothing"
    )


def _document(
    rate: MeasuredRate, tracking: RunningTracking, qemu: dict[str, object]
) -> dict[str, object]:
    return document("dirty-rate", qemu, tracking=tracking.as_dict(), **rate.as_dict())
