"""How a command ends: its exit status, and what an error looks like."""

from __future__ import annotations

import sys
import traceback

import click

from qemu_ring.cli.commands import cli
from qemu_ring.cli.frame.streams import OutputGoneError
from qemu_ring.errors import ExitStatus, QemuRingError

__all__ = ["status_of"]


def status_of(arguments: list[str] | None) -> int:
    """Run a command line to its end; an error is told on standard error.

    Returns:
        the documented exit status.
    """
    try:
        status = cli.main(arguments, prog_name="qemu-ring", standalone_mode=False)
        if sys.stdout is not None:
            sys.stdout.flush()
    except click.UsageError as error:
        # Its class is there from click 8.2 on; its message is all of the help.
        if error.ctx is not None and type(error).__name__ == "NoArgsIsHelpError":
            click.echo(error.ctx.get_help(), err=True)
            return ExitStatus.USAGE
        where = f"try '{error.ctx.command_path} --help'" if error.ctx else "try 'qemu-ring --help'"
        return _told(f"{error.format_message().rstrip('.')}; {where}", ExitStatus.USAGE)
    except click.ClickException as error:
        return _told(error.format_message(), ExitStatus.USAGE)
    except (click.Abort, KeyboardInterrupt):
        return ExitStatus.INTERRUPTED
    except OutputGoneError as error:
        return error.exit_status
    except QemuRingError as error:
        return _told(str(error), error.exit_status)
    except Exception:  # noqa: BLE001 - Python would exit with 1, which means "stale pages found"
        traceback.print_exc()
        return _told("that is a bug in qemu-ring; please report the lines above", ExitStatus.FAILED)
    return int(status or 0)


def _told(message: str, status: ExitStatus) -> int:
    click.echo(f"qemu-ring: {' '.join(message.split())}", err=True)
    return status
