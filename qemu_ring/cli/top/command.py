"""`qemu-ring top`: parsing and printing."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import termios
import time
import tty
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import contextmanager

import click
from rich.console import Console
from rich.live import Live
from rich.text import Text

from qemu_ring.cli.frame.numbers import COUNT
from qemu_ring.cli.frame.options import answer_timeout_option, json_option_that
from qemu_ring.cli.frame.output import notes, print_json
from qemu_ring.cli.frame.running import InterruptedRunError, run
from qemu_ring.cli.frame.sizes import Duration
from qemu_ring.cli.top.prometheus import metrics_server
from qemu_ring.cli.top.screen import cropped, guests_lines, head_line, plain_ascii
from qemu_ring.errors import ExitStatus, QemuRingError, UsageError
from qemu_ring.machine import probe_host
from qemu_ring.observe.poll import GuestPoller
from qemu_ring.observe.snapshot import GuestSnapshot, Presence
from qemu_ring.qmp import parse_address
from qemu_ring.qmp.address import wrong_address

__all__ = ["top"]

Snapshots = Sequence[GuestSnapshot]

_FIRST_POLL_SECONDS = 10.0
"""How long a snapshot waits for guests that do not answer, and for dirty rates."""
_PATIENCE_SECONDS = 2.0
"""How long the others wait for a guest that no longer answers; once each time that it is asked."""
_POLL_SECONDS = 0.05
_MEASURED_SHARE = 0.8
"""Of the interval: then each sample but the first has a dirty rate of its own."""


@click.command()
@click.argument("sockets", metavar="SOCKET...", nargs=-1, required=True)
@click.option(
    "--interval",
    type=Duration(0.1, 3600),
    metavar="SECONDS",
    default=1.0,
    show_default=True,
    help="Time from sample to sample.",
)
@click.option("--count", type=COUNT, metavar="N", help="End after N samples.")
@click.option("--once", is_flag=True, help="One sample as plain text, on a terminal too.")
@click.option(
    "--dirty-rate",
    "measure",
    is_flag=True,
    help="Have QEMU measure the dirty rate, by page sampling.",
)
@answer_timeout_option
@json_option_that("Print a JSON document on a line for each sample.")
@click.option(
    "--prometheus",
    metavar="[HOST]:PORT",
    help="Serve metrics there over HTTP, such as at :9469, and print nothing.",
)
def top(
    sockets: tuple[str, ...],
    interval: float,
    count: int | None,
    once: bool,
    measure: bool,
    as_json: bool,
    prometheus: str | None,
) -> int:
    """Watch running guests.

    Their QMP monitors are at SOCKET..., paths, @NAMEs or HOST:PORT.
    On a terminal until q or Ctrl-C; elsewhere one sample as plain text.
    """
    if len(set(sockets)) < len(sockets):
        raise UsageError("a guest is named twice", hint="name each socket once")
    if once and count is not None:
        raise UsageError("--once and --count contradict each other", hint="leave one out")
    if prometheus is not None and (once or count is not None or as_json):
        raise UsageError(
            "--prometheus goes on until it is ended", hint="leave out --once, --count and --json"
        )
    console = Console(highlight=False)
    live = console.is_terminal and not console.is_dumb_terminal and not once and not as_json
    if once or not (console.is_terminal or as_json or count):
        count = 1
    addresses = {socket: parse_address(socket) for socket in sockets}
    for socket, address in addresses.items():
        if wrong := wrong_address(address):
            raise UsageError(f"no QMP monitor is at {socket!r}: {wrong[0]}", hint=wrong[1])
    watch = GuestPoller(
        addresses,
        measure_seconds=interval * _MEASURED_SHARE if measure else None,
    )
    try:
        if prometheus is not None:
            run(_serve(watch, prometheus, interval))
        elif live:
            run(_live(watch, console, interval, count))
        else:
            show = _json_printer(interval, once) if as_json else _text_printer(console)
            run(_print(watch, show, interval, count, measure=measure))
    except InterruptedRunError as ended:
        if not live or ended.exit_status is not ExitStatus.INTERRUPTED:
            raise
    return 0


# On paper: text or JSON


async def _print(
    watch: GuestPoller,
    show: Callable[[Snapshots], None],
    interval: float,
    count: int | None,
    *,
    measure: bool,
) -> None:
    """Print samples one after the other, rates in all of them.

    Raises:
        QemuRingError: no guest was ever state.
    """
    async with watch:
        snapshots: Snapshots = await watch.poll(_FIRST_POLL_SECONDS)  # what rates are told against
        async for sample in _samples(watch, interval, count, delayed=True):
            snapshots = await _measured(watch, sample) if measure and count == 1 else sample
            show(snapshots)
    if all(snapshot.state is None for snapshot in snapshots):
        error = UsageError if all(map(_is_absent, snapshots)) else QemuRingError
        gone = snapshots[0].presence is Presence.GONE  # what does not answer has a hint of its own
        raise error(
            f"no guest was seen: {snapshots[0].socket}: {snapshots[0].problem}",
            hint="is QEMU running, with a QMP monitor there?" if gone else "",
        )


async def _serve(watch: GuestPoller, at: str, interval: float) -> None:
    """Serve samples as metrics, until it is ended; guests may come and go."""
    async with metrics_server(at) as (collector, url), watch:
        collector.update(await watch.poll(_PATIENCE_SECONDS))
        notes.print(f"qemu-ring: metrics are at {url}", soft_wrap=True)
        async for snapshots in _samples(watch, interval, None, delayed=True):
            collector.update(snapshots)


def _is_absent(snapshot: GuestSnapshot) -> bool:
    """Whether there is no such path at all."""
    address = parse_address(snapshot.socket)
    return isinstance(address, str) and not os.path.lexists(address)


async def _samples(
    watch: GuestPoller, interval: float, count: int | None, *, delayed: bool = False
) -> AsyncIterator[Snapshots]:
    """Look every `interval` seconds, `count` times; the first time at once, or `delayed`."""
    due = time.monotonic() + (interval if delayed else 0.0)
    made = 0
    while count is None or made < count:
        await asyncio.sleep(max(due - time.monotonic(), 0.0))
        yield await watch.poll(_PATIENCE_SECONDS)
        made += 1
        due = max(due + interval, time.monotonic() + interval / 2)  # late ones are not made up for


async def _measured(watch: GuestPoller, snapshots: Snapshots) -> Snapshots:
    """Wait until each guest has the dirty rate that was asked for, if it gets one."""
    deadline = time.monotonic() + _FIRST_POLL_SECONDS
    while time.monotonic() < deadline and any(
        snapshot.state is not None
        and not snapshot.problem
        and snapshot.state.dirty_rate is not None
        and snapshot.state.dirty_rate.bytes_per_second is None
        and snapshot.state.dirty_rate.measuring
        for snapshot in snapshots
    ):
        await asyncio.sleep(_POLL_SECONDS)
        snapshots = await watch.poll(_FIRST_POLL_SECONDS)
    return snapshots


def _text_printer(console: Console) -> Callable[[Snapshots], None]:
    def show(snapshots: Snapshots) -> None:
        lines = _fitting(console, guests_lines(snapshots, console.width))
        console.print(Text("\n").join(lines), soft_wrap=True)

    return show


def _json_printer(interval: float, once: bool) -> Callable[[Snapshots], None]:
    host = probe_host().as_dict()

    def show(snapshots: Snapshots) -> None:
        document = {
            "schema": {"name": "qemu-ring.top", "version": 1},
            "host": host,
            "time": time.time(),
            "interval_seconds": interval,
            "guests": [snapshot.as_dict() for snapshot in snapshots],
        }
        if once:
            print_json(document)
        else:
            click.echo(json.dumps(document))

    return show


def _fitting(console: Console, lines: list[Text]) -> list[Text]:
    return plain_ascii(lines) if console.options.ascii_only else lines


# On the screen


async def _live(watch: GuestPoller, console: Console, interval: float, count: int | None) -> None:
    """Show one sample after the other in one place, until the last, or the key q."""
    snapshots: Snapshots = ()

    def screen() -> Text:
        # The last line stays free: the cursor is there.
        height = console.height - 2
        lines = cropped(guests_lines(snapshots, console.width, height), height)
        head = head_line(len(snapshots), time.strftime("%X"), interval, console.width)
        return Text("\n").join(_fitting(console, [head, *lines]))

    async def refresh(display: Live) -> None:
        nonlocal snapshots
        async for snapshots in _samples(watch, interval, count):  # noqa: B007 - screen reads it
            display.update(screen(), refresh=True)

    display = Live(
        console=console, auto_refresh=False, redirect_stdout=False, redirect_stderr=False
    )
    async with watch:
        with _terminal(console) as end, display:
            refreshing = asyncio.create_task(refresh(display))
            ended = asyncio.create_task(end.wait())
            try:
                await asyncio.wait({refreshing, ended}, return_when=asyncio.FIRST_COMPLETED)
            finally:
                ended.cancel()
                if not refreshing.done():
                    refreshing.cancel()
                await asyncio.wait({refreshing, ended})
            if not refreshing.cancelled():
                refreshing.result()


@contextmanager
def _terminal(console: Console) -> Iterator[asyncio.Event]:
    """Take keys as they are pressed, and leave the terminal as it was, Ctrl-Z included.

    Yields:
        what is set once the user pressed q, or went away.
    """
    end = asyncio.Event()
    if not sys.stdin.isatty():
        yield end
        return
    loop, keyboard = asyncio.get_running_loop(), sys.stdin.fileno()
    before = termios.tcgetattr(keyboard)

    def key() -> None:
        try:
            pressed = os.read(keyboard, 64)
        except OSError:  # the terminal is gone
            pressed = b""
        is_letter = not pressed.startswith(b"\x1b")  # F2's code, for one, has a Q in it
        if not pressed or (is_letter and b"q" in pressed.lower()):
            loop.remove_reader(keyboard)
            end.set()

    def suspend() -> None:
        console.show_cursor(True)
        termios.tcsetattr(keyboard, termios.TCSADRAIN, before)
        os.kill(os.getpid(), signal.SIGSTOP)  # returns when the shell says so
        tty.setcbreak(keyboard)
        console.clear()
        console.show_cursor(False)

    tty.setcbreak(keyboard)
    loop.add_reader(keyboard, key)
    loop.add_signal_handler(signal.SIGTSTP, suspend)
    try:
        yield end
    finally:
        loop.remove_signal_handler(signal.SIGTSTP)
        loop.remove_reader(keyboard)
        termios.tcsetattr(keyboard, termios.TCSADRAIN, before)
