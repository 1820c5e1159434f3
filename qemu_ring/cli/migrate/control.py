"""`qemu-ring control`: parsing and printing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

from qemu_ring.cli.frame.options import json_option
from qemu_ring.cli.frame.output import print_json
from qemu_ring.cli.frame.running import run
from qemu_ring.cli.frame.sizes import RATE, Duration
from qemu_ring.errors import UsageError
from qemu_ring.machine import probe_host
from qemu_ring.migration.control import ControlAnswer, ControlRequest, request_control

__all__ = ["control"]

F = TypeVar("F", bound=Callable[..., Any])

_MIB = 1 << 20


@click.group()
def control() -> None:
    """Change a migration under way, pause, end or show it.

    SOCKET is the one that `qemu-ring migrate --control SOCKET` was given.
    """


def _action(name: str, words: str) -> Callable[[F], click.Command]:
    def decorate(function: F) -> click.Command:
        command: click.Command = control.command(name, help=words)(
            click.argument("socket", metavar="SOCKET")(json_option(function))
        )
        return command

    return decorate


@_action("status", "Show how it fares, and what is set.")
def status(socket: str, as_json: bool) -> int:
    return _ask(socket, ControlRequest(action="status"), as_json=as_json)


@control.command("set")
@click.argument("socket", metavar="SOCKET")
@click.option(
    "--max-bandwidth", type=RATE, metavar="RATE", help="Bytes a second, at most; 0: no limit."
)
@click.option(
    "--downtime-limit", type=Duration(0, 2000), metavar="TIME", help="Of standstill, at most."
)
@click.option(
    "--postcopy-bandwidth",
    type=RATE,
    metavar="RATE",
    help="Bytes a second, at most, after the switchover of postcopy; 0: no limit.",
)
@json_option
def set_(
    socket: str,
    max_bandwidth: int | None,
    downtime_limit: float | None,
    postcopy_bandwidth: int | None,
    as_json: bool,
) -> int:
    """Change bandwidths and the downtime limit."""
    if max_bandwidth is None and downtime_limit is None and postcopy_bandwidth is None:
        raise UsageError(
            "nothing is to be set",
            hint="use --max-bandwidth, --downtime-limit or --postcopy-bandwidth",
        )
    request = ControlRequest(
        action="set",
        max_bandwidth=max_bandwidth,
        downtime_limit=downtime_limit,
        postcopy_bandwidth=postcopy_bandwidth,
    )
    return _ask(socket, request, as_json=as_json)


@_action("pause", "Send next to nothing until it is resumed; the guest runs on.")
def pause(socket: str, as_json: bool) -> int:
    return _ask(socket, ControlRequest(action="pause"), as_json=as_json)


@_action("resume", "Go on after a pause.")
def resume(socket: str, as_json: bool) -> int:
    return _ask(socket, ControlRequest(action="resume"), as_json=as_json)


@_action("switchover", "Stop the guest now and send what is left, however long it takes.")
def switchover(socket: str, as_json: bool) -> int:
    return _ask(socket, ControlRequest(action="switchover"), as_json=as_json)


@_action("postcopy", "Switch over to postcopy now; memory follows.")
def postcopy(socket: str, as_json: bool) -> int:
    return _ask(socket, ControlRequest(action="postcopy"), as_json=as_json)


@_action("cancel", "Give it up; the guest goes on at the source.")
def cancel(socket: str, as_json: bool) -> int:
    return _ask(socket, ControlRequest(action="cancel"), as_json=as_json)


def _ask(socket: str, request: ControlRequest, *, as_json: bool) -> int:
    answer = run(request_control(socket, request))
    if as_json:
        found = answer.model_dump(exclude={"error", "hint", "exit_status"})
        schema = {"name": "qemu-ring.control", "version": 1}
        print_json({"schema": schema, "host": probe_host().as_dict(), **found})
    else:
        click.echo(_in_words(answer))
    return 0


def _in_words(answer: ControlAnswer) -> str:
    parts = [answer.status + (", paused" if answer.paused else "")]
    if answer.seconds is not None:
        parts.append(f"for {answer.seconds:.1f} s")
    if answer.remaining is not None and answer.bandwidth is not None:
        parts.append(
            f"pass {answer.iteration}: {answer.remaining / _MIB:,.1f} MiB left, "
            f"{answer.bandwidth / _MIB:,.1f} MiB/s sent"
        )
    if answer.max_bandwidth is not None:
        limit = f"{answer.max_bandwidth / _MIB:,.1f} MiB/s" if answer.max_bandwidth else "none"
        parts.append(f"bandwidth limit {limit}")
    if answer.downtime_limit is not None:
        parts.append(f"downtime limit {answer.downtime_limit * 1000:,.0f} ms")
    return "\n".join([", ".join(parts), *answer.decisions])
