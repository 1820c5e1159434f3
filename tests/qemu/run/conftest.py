"""`qemu-ring run` as a user starts it."""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from qemu_ring._compat import timeout
from qemu_ring.errors import HostError
from qemu_ring.guest.linux import debian_kernel, initramfs
from tests.command import COMMAND
from tests.processes import killed_if_it_fails
from tests.waiting import DEADLINE

RUN = [*COMMAND, "run"]


@dataclass
class Running:
    """The command, once it has said that its guest is up."""

    process: subprocess.Popen[str]
    line: str
    pid: int  # of QEMU

    def end(self) -> tuple[int, str]:
        """Wait for its end; its exit status, and what it said on standard error."""
        out, err = self.process.communicate(timeout=DEADLINE)
        assert out == ""
        return self.process.returncode, err


Run = Callable[..., Running]


@pytest.fixture
def run_guest(qemu_path: Path) -> Iterator[Run]:
    """Start `qemu-ring run`, and wait for its line."""
    with ExitStack() as stack:

        def start(*arguments: object, qemu: Path = qemu_path) -> Running:
            process = stack.enter_context(command(*arguments, "--qemu", qemu))
            assert process.stdout is not None
            line = process.stdout.readline()
            if not line:
                _, err = process.communicate(timeout=DEADLINE)
                raise AssertionError(f"exit status {process.returncode}: {err}")
            return Running(process, line, int(line.split("pid ")[1].split(",")[0]))

        yield start


@contextmanager
def command(*arguments: object) -> Iterator[subprocess.Popen[str]]:
    """The command in the background; killed when the context is left, if it still runs."""
    with killed_if_it_fails(
        subprocess.Popen(
            [*RUN, *map(str, arguments)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
    ) as process:
        try:
            yield process
        finally:
            if process.poll() is None:
                process.kill()


@pytest.fixture
def short_path() -> Iterator[Path]:
    """A directory whose path leaves room for a socket's name."""
    with tempfile.TemporaryDirectory(prefix="qemu-ring-") as directory:
        yield Path(directory)


def memory_of(pid: int, name: str) -> int:
    """Open the file that backs a piece of a QEMU's guest memory."""
    for link in Path(f"/proc/{pid}/fd").iterdir():
        if str(link.readlink()).startswith(f"/memfd:qemu-ring:{name} "):
            return os.open(link, os.O_RDONLY)
    raise AssertionError(f"process {pid} has no {name}")


@pytest.fixture
async def linux_files() -> None:
    """Debian's kernel and the initramfs; fetched and compiled by the first test that asks."""
    try:
        async with timeout(600):
            await debian_kernel()
            await initramfs()
    except HostError as error:
        pytest.skip(f"no Linux guest can be made here: {error}")
