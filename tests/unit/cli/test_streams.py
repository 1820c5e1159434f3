"""Standard streams that are closed, full, or read by nobody: never a verdict, never a traceback."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

COMMAND = [sys.executable, "-W", "error", "-m", "qemu_ring.cli.main"]
PRINTING = [["--help"], ["--version"], ["run", "--schema"], ["experiment", "plan", "--schema"]]


def shell(redirection: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["sh", "-c", f'exec "$@" {redirection}', "sh", *COMMAND, *arguments],
        capture_output=True,
        text=True,
        timeout=60,
    )


@pytest.mark.parametrize("arguments", PRINTING, ids=" ".join)
@pytest.mark.parametrize(
    ("redirection", "cause"),
    [(">&-", "Bad file descriptor"), ("> /dev/full", "No space left on device")],
)
def test_answer_that_cannot_be_written(arguments: list[str], redirection: str, cause: str) -> None:
    done = shell(redirection, *arguments)
    said = f"qemu-ring: standard output: {cause}; the answer is lost: run it again\n"
    assert (done.returncode, done.stdout, done.stderr) == (4, "", said)


@pytest.mark.parametrize("arguments", PRINTING, ids=" ".join)
def test_nobody_reads(arguments: list[str]) -> None:
    """141 is what a shell makes of SIGPIPE, and what a pipeline's others end with."""
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as gone:
        done = subprocess.run(
            [*COMMAND, *arguments], stdout=gone, stderr=subprocess.PIPE, timeout=60
        )
    assert (done.returncode, done.stderr) == (141, b"")


@pytest.mark.parametrize("redirection", ["2>&-", "2> /dev/full", "<&-", "<&- 2>&-"])
def test_other_streams_change_nothing(redirection: str) -> None:
    assert shell(redirection, "no-such-command").returncode == 2
    done = shell(redirection, "--version")
    assert done.returncode == 0
    assert done.stdout.startswith("qemu-ring, version ")


def test_no_descriptor_takes_a_closed_streams_number(tmp_path: Path) -> None:
    """A file opened later would get what is printed."""
    program = tmp_path / "program.py"
    program.write_text(
        "import os\n"
        "from qemu_ring.cli.streams import guard_streams\n"
        "guard_streams()\n"
        "os._exit(os.open('/dev/null', os.O_RDONLY))\n"
    )
    done = subprocess.run(
        ["sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh", sys.executable, program], timeout=60
    )
    assert done.returncode > 2
