"""`qemu-ring policy get|set`: parsing and printing."""

from __future__ import annotations

import click
from rich.console import Console
from rich.table import Table

from qemu_ring.cli.frame.attached import ask, document, socket_argument
from qemu_ring.cli.frame.options import answer_timeout_option, json_option
from qemu_ring.cli.frame.output import print_json
from qemu_ring.errors import UsageError
from qemu_ring.memslot import FlushInfo, FlushPolicy, query_flush, set_flush_policy

__all__ = ["policy"]


@click.group()
def policy() -> None:
    """Show or change how the guest's memslots are removed."""


@policy.command("get")
@socket_argument
@answer_timeout_option
@json_option
def policy_get(socket: str, as_json: bool) -> int:
    """Show the flush policy, and what each policy has done."""
    info, qemu = ask(socket, query_flush)
    _show(info, qemu, as_json=as_json)
    return 0


@policy.command("set")
@socket_argument
@click.argument("name", metavar="POLICY")
@answer_timeout_option
@json_option
def policy_set(socket: str, name: str, as_json: bool) -> int:
    """Change the flush policy of the running guest at SOCKET.

    POLICY is auto, best-effort, quiesce, read-only or tombstone.
    """
    policies = [one.value for one in FlushPolicy]
    if name not in policies and socket in policies:
        socket, name = name, socket  # either order will do: no policy is a socket's path
    if name not in policies:
        raise UsageError(f"no such policy: {name}", hint=f"use one of {', '.join(policies)}")
    info, qemu = ask(socket, lambda monitor: set_flush_policy(monitor, FlushPolicy(name)))
    _show(info, qemu, as_json=as_json)
    return 0


def _show(info: FlushInfo, qemu: dict[str, object], *, as_json: bool) -> None:
    if as_json:
        print_json(document("policy", qemu, **info.model_dump(mode="json")))
        return
    console = Console(highlight=False)
    console.print(f"policy: {info.policy.value}; in force: {info.effective.value}")
    console.print(f"dirty ring entries whose memslot was gone: {info.entries_dropped:,}")
    table = Table(box=None, pad_edge=False)
    for heading in ("", "removals", "pages", "late", "trapped", "holds", "mean us", "max us"):
        table.add_column(heading, justify="right" if heading else "left")
    for one in info.stats:
        mean = one.hold_ns / one.holds / 1000 if one.holds else 0.0
        counts = (one.removals, one.pages_harvested, one.pages_late, one.writes_trapped, one.holds)
        times = (f"{mean:,.0f}", f"{one.hold_ns_max / 1000:,.0f}")
        table.add_row(one.policy.value, *(f"{count:,}" for count in counts), *times)
    console.print(table)
