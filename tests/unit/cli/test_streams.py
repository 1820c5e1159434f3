"""Standard streams that are closed, full, or read by nobody: never a verdict, never a traceback."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.command import COMMAND

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
        "from qemu_ring.cli.frame.streams import guard_streams\n"
        "guard_streams()\n"
        "os._exit(os.open('/dev/null', os.O_RDONLY))\n"
    )
    done = subprocess.run(
        ["sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh", sys.executable, program], timeout=60
    )
    assert done.returncode > 2


ODD = "no\udcff\u2192.qmp"  # bytes that are no UTF-8, and a character that Latin-1 has not


@pytest.mark.parametrize(
    ("charset", "arrow"), [("utf-8", b"\xe2\x86\x92"), ("iso-8859-1", b"\\u2192")]
)
def test_names_that_are_no_text(tmp_path: Path, charset: str, arrow: bytes) -> None:
    """And characters outside the terminal's charset: neither is a failure of the command."""
    done = subprocess.run(
        [*COMMAND, "top", "--once", "--interval", "0.1", os.fsencode(ODD)],
        capture_output=True,
        env=os.environ | {"PYTHONIOENCODING": charset},
        cwd=tmp_path,
        timeout=60,
    )
    assert done.returncode == 2  # there is no such socket
    assert b"no\xff" + arrow + b".qmp: no QMP session: No such file" in done.stderr
    assert b"Traceback" not in done.stderr


@pytest.mark.parametrize("charset", ["ascii", "iso-8859-1", "cp1252", "utf-8"])
def test_any_text_can_be_written(charset: str) -> None:
    """By print and by rich; each character in some way, the others as they are."""
    program = (
        "from qemu_ring.cli.frame.streams import guard_streams; guard_streams()\n"
        "from rich.console import Console\n"
        "text = 'a \\udcff \\u2192 \\U0001f600 \\xe9 z'\n"
        "print(text); Console(highlight=False).print(text, emoji=False)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        env=os.environ | {"PYTHONIOENCODING": charset},
        timeout=60,
    )
    assert (done.returncode, done.stderr) == (0, b"")
    for line in done.stdout.splitlines():
        assert line.startswith(b"a ")
        assert line.rstrip().endswith(b" z")
    assert b"\xff" in done.stdout.splitlines()[0]
