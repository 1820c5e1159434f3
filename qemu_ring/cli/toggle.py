"""`qemu-ring toggle`: parsing and printing."""

from __future__ import annotations

import click

from qemu_ring.cli.attached import ask, document, json_option, socket_argument
from qemu_ring.cli.output import print_json
from qemu_ring.cli.running import run
from qemu_ring.dirty import Tracking
from qemu_ring.memslot import FlushPolicy
from qemu_ring.migration.owner import ToggleRequest, request_toggle
from qemu_ring.qmp import commands

__all__ = ["toggle_command"]


@click.command("toggle")
@click.option(
    "--to",
    "tracking",
    required=True,
    metavar="ring:SIZE|bitmap",
    help="How dirty pages are to be tracked; SIZE in entries, a power of two.",
)
@click.option(
    "--policy",
    type=click.Choice([policy.value for policy in FlushPolicy]),
    help="How slots are to be removed; needs a patched QEMU.",
)
@socket_argument
@json_option
def toggle_command(tracking: str, policy: str | None, socket: str, as_json: bool) -> int:
    """Change how dirty pages of a running guest are tracked.

    The guest, one that `qemu-ring run` started, is moved to a new QEMU on this host without
    copying its memory. On any failure it goes on where it was.
    """
    parsed = Tracking.parse(tracking)
    request = ToggleRequest(
        tracking=str(parsed), policy=None if policy is None else FlushPolicy(policy)
    )
    answer = run(request_toggle(socket, request))
    if as_json:
        status, qemu = ask(socket, commands.query_status)
        print_json(
            document(
                "toggle",
                qemu,
                tracking=str(parsed),
                policy=policy,
                state=status.status,
                downtime_seconds=answer.downtime_seconds,
                seconds=answer.seconds,
                pid=answer.pid,
            )
        )
        return 0
    down = (
        "it was paused"
        if answer.downtime_seconds is None
        else f"downtime {answer.downtime_seconds * 1000:.1f} ms"
    )
    click.echo(f"{parsed}: {down}, {answer.seconds * 1000:.0f} ms in all; pid {answer.pid} now")
    return 0
