"""The `qemu-ring` command's subcommands; each is imported when it is asked for."""

from __future__ import annotations

import importlib
import signal
from collections.abc import Sequence
from typing import Any, NamedTuple

import click

from qemu_ring import __version__
from qemu_ring.cli.frame.running import InterruptedRunError
from qemu_ring.cli.frame.starting import quiet_interrupts

__all__ = ["cli", "summaries"]


class _Place(NamedTuple):
    """Where a command is, and its help's first line, which a test compares with its own."""

    module: str
    name: str
    summary: str


_COMMANDS = {
    "build": _Place("build", "build_command", "Build a QEMU that loses no dirty bits."),
    "control": _Place(
        "migrate.control", "control", "Change a migration under way, pause, end or show it."
    ),
    "dirty-rate": _Place("dirty_rate", "dirty_rate", "Measure how fast a guest dirties memory."),
    "doctor": _Place("doctor", "doctor", "Tell what this host and this QEMU can do."),
    "experiment": _Place(
        "experiment.command", "experiment", "Scripted migration experiments, from a YAML file."
    ),
    "limit": _Place("limit", "limit", "Show, set or cancel dirty limits of vCPUs."),
    "migrate": _Place("migrate.command", "migrate", "Migrate, save or restore a guest."),
    "policy": _Place("policy", "policy", "Show or change how the guest's memslots are removed."),
    "prove": _Place(
        "prove", "prove_command", "Show whether a QEMU loses dirty bits when memory slots go away."
    ),
    "rings": _Place("rings", "rings", "Show a guest's dirty rings."),
    "run": _Place(
        "run", "run_command", "Start the guest that a YAML file describes, and stay until it ends."
    ),
    "slots": _Place("slots", "slots", "List a guest's KVM memslots."),
    "toggle": _Place(
        "toggle", "toggle_command", "Change how dirty pages of a running guest are tracked."
    ),
    "top": _Place("top.command", "top", "Watch running guests."),
    "torture": _Place(
        "torture",
        "torture_command",
        "Try to make a QEMU lose a page, crash or hang, by random programs.",
    ),
}


class _Commands(click.Group):
    """A group that imports only the command that is run: a start is quicker by half a second."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        return sorted(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        place = _COMMANDS.get(cmd_name)
        if place is None:
            return None
        with quiet_interrupts():
            module = importlib.import_module(f"qemu_ring.cli.{place.module}")
        command: click.Command = getattr(module, place.name)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        with formatter.section("Commands"):
            formatter.write_dl([(name, place.summary) for name, place in _COMMANDS.items()])

    # Click would end with an empty line and an exception that does not tell which signal it was.

    def make_context(
        self,
        info_name: str | None,
        args: list[str],
        parent: click.Context | None = None,
        **extra: Any,
    ) -> click.Context:
        try:
            return super().make_context(info_name, args, parent, **extra)
        except KeyboardInterrupt:
            raise InterruptedRunError(signal.SIGINT) from None

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            raise InterruptedRunError(signal.SIGINT) from None


def summaries() -> Sequence[tuple[str, str]]:
    """Each command's name and the first line of its help."""
    return [(name, place.summary) for name, place in _COMMANDS.items()]


@click.group(
    cls=_Commands,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog=(
        "Exit status: 0 done and good; 1 done and the answer is bad; 2 usage error, nothing was "
        "started; 3 this host or this QEMU cannot do it; 4 a run failed or timed out; "
        "130 interrupted; 141 nobody read the output; 143 terminated."
    ),
)
@click.version_option(__version__, prog_name="qemu-ring")
def cli() -> None:
    """Track a guest's dirty memory, and migrate it without losing a byte."""
