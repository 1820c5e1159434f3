"""The `qemu-ring` command: its subcommands, and what an error looks like."""

from __future__ import annotations

import os
import sys
import traceback

import click

from qemu_ring import __version__
from qemu_ring.cli.build import build_command
from qemu_ring.cli.dirty_rate import dirty_rate
from qemu_ring.cli.doctor import doctor
from qemu_ring.cli.experiment import experiment
from qemu_ring.cli.limit import limit
from qemu_ring.cli.migrate import migrate
from qemu_ring.cli.policy import policy
from qemu_ring.cli.prove import prove_command
from qemu_ring.cli.rings import rings
from qemu_ring.cli.run import run_command
from qemu_ring.cli.slots import slots
from qemu_ring.cli.toggle import toggle_command
from qemu_ring.cli.top import top
from qemu_ring.errors import ExitStatus, QemuRingError

__all__ = ["main"]


@click.group(
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog=(
        "Exit status: 0 done and good; 1 done and the answer is bad; 2 usage error, nothing was "
        "started; 3 this host or this QEMU cannot do it; 4 a run failed or timed out; "
        "130 interrupted; 143 terminated."
    ),
)
@click.version_option(__version__, prog_name="qemu-ring")
def cli() -> None:
    """Track a guest's dirty memory, and migrate it without losing a byte."""


cli.add_command(prove_command)
cli.add_command(doctor)
for _command in (slots, rings, policy):
    cli.add_command(_command)
for _command in (run_command, toggle_command, migrate, dirty_rate, limit, top):
    cli.add_command(_command)
cli.add_command(experiment)
cli.add_command(build_command)


def main(arguments: list[str] | None = None) -> None:
    """Run the command line; ends the process with the documented exit status."""
    try:
        status = cli.main(arguments, prog_name="qemu-ring", standalone_mode=False)
        sys.stdout.flush()
    except click.UsageError as error:
        where = f"try '{error.ctx.command_path} --help'" if error.ctx else "try 'qemu-ring --help'"
        _fail(f"{error.format_message().rstrip('.')}; {where}", ExitStatus.USAGE)
    except click.ClickException as error:
        _fail(error.format_message(), ExitStatus.USAGE)
    except (click.Abort, KeyboardInterrupt):
        _fail("interrupted; everything started was stopped", ExitStatus.INTERRUPTED)
    except QemuRingError as error:
        _fail(str(error), error.exit_status)
    except BrokenPipeError:
        # Whoever read our output has gone; that is no failure of ours to report.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(ExitStatus.FAILED)
    except Exception:  # noqa: BLE001 - Python would exit with 1, which means "stale pages found"
        traceback.print_exc()
        _fail("that is a bug in qemu-ring; please report the lines above", ExitStatus.FAILED)
    sys.exit(int(status or 0))


def _fail(message: str, status: ExitStatus) -> None:
    line = " ".join(message.split())
    click.echo(f"qemu-ring: {line}", err=True)
    sys.exit(int(status))


if __name__ == "__main__":
    main()
