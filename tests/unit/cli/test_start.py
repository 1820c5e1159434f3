"""The command's start: quick, quiet when interrupted, and help that fits a terminal."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator

import click
import pytest

from qemu_ring.cli.commands import cli, summaries
from qemu_ring.cli.main import main

COLUMNS = 80


def commands(group: click.Group, path: tuple[str, ...] = ()) -> Iterator[tuple[str, click.Command]]:
    """Each command below a group, with its name as typed."""
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        yield " ".join([*path, name]), command
        if isinstance(command, click.Group):
            yield from commands(command, (*path, name))


def test_summaries_are_the_commands_own() -> None:
    context = click.Context(cli)
    for name, summary in summaries():
        command = cli.get_command(context, name)
        assert command is not None
        assert command.help is not None
        assert command.help.partition("\n\n")[0] == summary


def test_summaries_fit_a_terminal() -> None:
    """Click cuts what does not; the first level's are folded."""
    found = dict(commands(cli))
    assert {"prove", "limit set", "experiment run"} <= found.keys()
    for name, command in found.items():
        if " " in name and not name.startswith("experiment "):
            assert "..." not in command.get_short_help_str(COLUMNS - 15), name


@pytest.mark.parametrize("arguments", [[], ["policy"], ["limit"], ["experiment"]], ids=str)
def test_no_subcommand_shows_the_help(
    capsys: pytest.CaptureFixture[str], arguments: list[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    said = capsys.readouterr()
    assert (ended.value.code, said.out) == (2, "")
    lines = said.err.splitlines()
    assert lines[0].startswith(" ".join(["Usage: qemu-ring", *arguments]))
    assert "Commands:" in lines


def test_light_commands_import_no_layer() -> None:
    program = (
        "import sys\n"
        "from qemu_ring.cli.main import main\n"
        "try:\n"
        "    main(['--help'])\n"
        "finally:\n"
        "    print(sorted(sys.modules), file=sys.stderr)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0
    for layer in ("machine", "qmp", "migration", "experiment"):
        assert f"'qemu_ring.{layer}'" not in done.stderr
    assert "'pydantic'" not in done.stderr


def test_interrupted_while_it_imports() -> None:
    program = (
        "import os, signal, sys\n"
        "from qemu_ring.cli.frame.starting import quiet_interrupts\n"
        # A shell's background processes ignore it, and so would this one.
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "with quiet_interrupts():\n"
        "    os.kill(os.getpid(), signal.SIGINT)\n"
        "print('went on')\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")


def test_interrupted_outside_of_a_run(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(_: str | None) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("qemu_ring.cli.prove.find_qemu", interrupted)
    with pytest.raises(SystemExit) as ended:
        main(["prove"])
    said = capsys.readouterr()
    assert (ended.value.code, said.out) == (130, "")
    assert said.err.startswith("qemu-ring: ended by SIGINT")
    assert said.err.count("\n") == 1
