"""The command, as a user starts it."""

from __future__ import annotations

import subprocess
import sys

from tests.waiting import DEADLINE

__all__ = ["COMMAND", "run_command", "start_command"]

COMMAND = [sys.executable, "-W", "error", "-m", "qemu_ring.cli.main"]


def start_command(*arguments: str) -> subprocess.Popen[str]:
    """Start it, with pipes for what it writes."""
    return subprocess.Popen(
        [*COMMAND, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def run_command(
    *arguments: str, expect: int = 0, environment: dict[str, str] | None = None
) -> tuple[str, str]:
    """Run it, to the exit status that is expected; returns what it wrote: output, and errors."""
    done = subprocess.run(
        [*COMMAND, *arguments],
        capture_output=True,
        text=True,
        timeout=3 * DEADLINE,
        env=environment,
        check=False,
    )
    assert done.returncode == expect, done.stderr
    return done.stdout, done.stderr
