"""Print docs/commands.md: every command's usage and options, from the commands themselves.

`python tools/commands.py > docs/commands.md`; a test compares the two.
"""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Iterator

import click

from qemu_ring.cli.commands import cli

HEAD = """# Commands

What `--help` says, of every command; made by `python tools/commands.py`. Exit statuses are in
[exit-status.md](exit-status.md). Sizes are bytes or have a unit (`512MiB`, `1.5G`), durations are
seconds or have one (`300ms`, `2m`).
"""


def commands(command: click.Command, path: tuple[str, ...]) -> Iterator[tuple[str, click.Command]]:
    """Give each command that does something, with its full name."""
    if not isinstance(command, click.Group) or command.invoke_without_command:
        yield " ".join(path), command
    if isinstance(command, click.Group):
        context = click.Context(command)
        for name in command.list_commands(context):
            found = command.get_command(context, name)
            assert found is not None
            yield from commands(found, (*path, name))


def cell(text: str) -> str:
    """Make a text fit a cell of a Markdown table."""
    return re.sub(r"\s+", " ", text).strip().replace("|", "\\|")


def described(name: str, command: click.Command) -> Iterator[str]:
    """Give the lines about one command."""
    context = click.Context(command, info_name=name)
    yield f"## {name}\n"
    yield f"```\n{' '.join([name, *command.collect_usage_pieces(context)])}\n```\n"
    yield inspect.cleandoc(command.help or "").replace("\b\n", "") + "\n"
    rows = [
        record
        for parameter in command.params
        if isinstance(parameter, click.Option) and (record := parameter.get_help_record(context))
    ]
    if rows:
        yield "| option | meaning |\n|---|---|"
        yield from (f"| `{cell(option)}` | {cell(meaning)} |" for option, meaning in rows)
        yield ""


def page() -> str:
    """Give the whole page."""
    lines = [HEAD]
    for name, command in commands(cli, ("qemu-ring",)):
        lines += described(name, command)
    return "\n".join(lines).rstrip() + "\n"


if __name__ == "__main__":
    sys.stdout.write(page())
