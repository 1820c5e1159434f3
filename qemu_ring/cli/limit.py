"""`qemu-ring limit get|set|cancel`: parsing and printing."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import click
from rich.console import Console
from rich.table import Table

from qemu_ring.cli.frame.attached import ask, document, socket_argument
from qemu_ring.cli.frame.numbers import Whole
from qemu_ring.cli.frame.options import answer_timeout_option, json_option
from qemu_ring.cli.frame.output import notes, print_json
from qemu_ring.cli.frame.sizes import RATE, mib_per_second
from qemu_ring.dirty import (
    RunningTracking,
    VcpuLimit,
    cancel_dirty_limit,
    granted_limit,
    least_limit,
    query_dirty_limits,
    query_tracking,
    set_dirty_limit,
)
from qemu_ring.qmp import Monitor

__all__ = ["limit"]

_vcpu_option = click.option(
    "--vcpu", type=Whole(0, 65535), metavar="N", help="Of this vCPU only; default: each."
)


@click.group()
def limit() -> None:
    """Show, set or cancel dirty limits of vCPUs.

    How fast they may dirty memory; needs the dirty ring.
    """


@limit.command("get")
@socket_argument
@answer_timeout_option
@json_option
def limit_get(socket: str, as_json: bool) -> int:
    """Show limits, and how fast vCPUs dirtied memory just before."""
    _run(socket, query_dirty_limits, as_json=as_json, with_rates=True)
    return 0


@limit.command("set")
@socket_argument
@click.argument("rate", type=RATE, metavar="RATE")
@_vcpu_option
@answer_timeout_option
@json_option
def limit_set(socket: str, rate: int, vcpu: int | None, as_json: bool) -> int:
    """Let each vCPU dirty no more than RATE bytes a second.

    50M is 50 MiB/s. QEMU takes whole MiB/s, needs some seconds to get there, and keeps to it
    roughly.
    """
    granted = granted_limit(rate)

    async def change(monitor: Monitor) -> tuple[VcpuLimit, ...]:
        return await set_dirty_limit(monitor, rate, vcpu=vcpu)

    tracking = _run(socket, change, as_json=as_json)
    if granted != rate:
        notes.print(
            f"QEMU takes whole MiB/s: {mib_per_second(granted)} for {rate:,} bytes/s",
            soft_wrap=True,
        )
    entries = tracking.ring_entries
    if entries and granted < least_limit(entries):
        notes.print(
            f"A vCPU waits only when its ring is full: one of {entries} entries lets it dirty "
            f"about {mib_per_second(least_limit(entries))} in any case",
            soft_wrap=True,
        )
    return 0


@limit.command("cancel")
@socket_argument
@_vcpu_option
@answer_timeout_option
@json_option
def limit_cancel(socket: str, vcpu: int | None, as_json: bool) -> int:
    """Let vCPUs dirty memory as fast as they can again."""

    async def change(monitor: Monitor) -> tuple[VcpuLimit, ...]:
        return await cancel_dirty_limit(monitor, vcpu=vcpu)

    _run(socket, change, as_json=as_json)
    return 0


def _run(
    socket: str,
    change: Callable[[Monitor], Awaitable[tuple[VcpuLimit, ...]]],
    *,
    as_json: bool,
    with_rates: bool = False,
) -> RunningTracking:
    """Do it, print the limits then in force, and tell the guest's tracking."""

    async def answer(monitor: Monitor) -> tuple[tuple[VcpuLimit, ...], RunningTracking]:
        return await change(monitor), await query_tracking(monitor)

    (limits, tracking), qemu = ask(socket, answer)
    if as_json:
        listed = [one.as_dict() for one in limits]
        print_json(document("limit", qemu, tracking=tracking.as_dict(), limits=listed))
    else:
        _print(limits, with_rates=with_rates)
    return tracking


def _print(limits: tuple[VcpuLimit, ...], *, with_rates: bool) -> None:
    if not limits:
        click.echo("No vCPU has a dirty limit.")
        return
    table = Table(box=None, pad_edge=False)
    for heading in ("vCPU", "limit", *(["dirtied"] if with_rates else [])):
        table.add_column(heading, justify="right")
    for one in limits:
        rates = (one.limit, one.rate) if with_rates else (one.limit,)
        table.add_row(str(one.vcpu), *map(mib_per_second, rates))
    Console(highlight=False).print(table)
