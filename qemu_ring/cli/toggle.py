"""`qemu-ring toggle`: parsing and printing."""

from __future__ import annotations

import click

from qemu_ring.cli.frame.attached import document, socket_argument
from qemu_ring.cli.frame.guest_options import FLUSH_POLICIES
from qemu_ring.cli.frame.options import json_option
from qemu_ring.cli.frame.output import notes, print_json
from qemu_ring.cli.frame.running import run
from qemu_ring.dirty import Tracking
from qemu_ring.memslot import FlushPolicy
from qemu_ring.migration.toggling.owner import ToggleAnswer, ToggleRequest, request_toggle

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
    type=FLUSH_POLICIES,
    help="How slots are to be removed, on a patched QEMU; default: as they are now.",
)
@socket_argument
@json_option
def toggle_command(tracking: str, policy: str | None, socket: str, as_json: bool) -> int:
    """Change how dirty pages of a running guest are tracked.

    The guest, one that `qemu-ring run` started, is moved to a new QEMU on this host without
    copying its memory. All else about it stays as it is. On any failure it goes on where it was.
    """
    parsed = Tracking.parse(tracking)
    request = ToggleRequest(
        tracking=str(parsed), policy=None if policy is None else FlushPolicy(policy)
    )
    answer = run(request_toggle(socket, request))
    for note in answer.notes:
        notes.print(note, soft_wrap=True)
    if as_json:
        print_json(
            document(
                "toggle",
                answer.qemu,
                tracking=str(parsed),
                policy=policy,
                state=answer.state,
                downtime_seconds=answer.downtime_seconds,
                seconds=answer.seconds,
                pid=answer.pid,
                notes=list(answer.notes),
            )
        )
        return 0
    whole = f"{answer.seconds * 1000:.0f} ms in all; pid {answer.pid} now"
    click.echo(f"{parsed}: {_downtime(answer)}, {whole}")
    return 0


def _downtime(answer: ToggleAnswer) -> str:
    if answer.downtime_seconds is not None:
        return f"downtime {answer.downtime_seconds * 1000:.1f} ms"
    return "downtime unknown" if answer.running else "it was paused"
