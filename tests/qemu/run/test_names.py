"""Files, sockets and labels whose names are no text, on a terminal that has few characters."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from qemu_ring.machine.sockets import listens
from tests.command import COMMAND
from tests.processes import killed_if_it_fails
from tests.waiting import DEADLINE, wait_until

pytestmark = pytest.mark.qemu

ODD = "\udcff→é"
ENVIRONMENT = os.environ | {"PYTHONIOENCODING": "iso-8859-1"}
EXAMPLE = Path(__file__).parents[3] / "guests/tcg.yaml"


@pytest.fixture(params=["distribution", pytest.param("patched", marks=pytest.mark.build)])
def binary(request: pytest.FixtureRequest) -> Path:
    name = {"distribution": "qemu_path", "patched": "patched_qemu"}[request.param]
    found: Path = request.getfixturevalue(name)
    return found


@pytest.fixture
def folder(short_path: Path) -> Path:
    made = short_path / ODD
    made.mkdir()
    return made


def qemu_ring(*arguments: object) -> tuple[int, bytes, bytes]:
    done = subprocess.run(
        [*COMMAND, *map(str, arguments)],
        capture_output=True,
        env=ENVIRONMENT,
        timeout=2 * DEADLINE,
    )
    return done.returncode, done.stdout, done.stderr


@contextmanager
def running(*arguments: object) -> Iterator[bytes]:
    """`qemu-ring run`, and the line that it says."""
    with killed_if_it_fails(
        subprocess.Popen(
            [*COMMAND, "run", *map(str, arguments)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=ENVIRONMENT,
        )
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        try:
            line = process.stdout.readline()
            assert line, process.stderr.read()
            yield line
        finally:
            process.terminate()
            process.wait(DEADLINE)


def test_guest_is_started_watched_saved_and_migrated(binary: Path, folder: Path) -> None:
    guest, source, destination = (folder / name for name in ("g.yaml", "a.qmp", "b.qmp"))
    guest.write_text(EXAMPLE.read_text())
    with ExitStack() as stack:
        line = stack.enter_context(running(guest, "--qmp", source, "--qemu", binary))
        assert b"\xff\\u2192\xe9/a.qmp" in line
        twin = (guest, "--qmp", destination, "--incoming", "defer", "--qemu", binary)
        stack.enter_context(running(*twin))
        status, out, err = qemu_ring("top", "--once", source)
        assert (status, err) == (0, b"")
        assert b"running" in out
        status, out, err = qemu_ring("dirty-rate", "--mode", "page-sampling", "--json", source)
        assert (status, err) == (0, b"")
        assert json.loads(out)["mode"] == "page-sampling"
        status, out, err = qemu_ring("migrate", source, destination)
        assert (status, err) == (0, b"")
        assert b"the guest runs at the destination" in out
        saved = folder / "saved"
        status, out, err = qemu_ring("migrate", destination, "--to-file", saved)
        assert (status, err) == (0, b"")
        assert b"\xff\\u2192\xe9/saved: completed" in b"".join(out.splitlines())
        assert saved.exists()


def test_channel_that_qmp_cannot_name(binary: Path, folder: Path) -> None:
    """The mistake is told before anything is begun, and the guest goes on."""
    guest, source, destination = (folder / name for name in ("g.yaml", "a.qmp", "b.qmp"))
    guest.write_text(EXAMPLE.read_text())
    with ExitStack() as stack:
        stack.enter_context(running(guest, "--qmp", source, "--qemu", binary))
        twin = (guest, "--qmp", destination, "--incoming", "defer", "--qemu", binary)
        stack.enter_context(running(*twin))
        channel = f"unix:{folder}/m"
        status, _, err = qemu_ring("migrate", source, destination, "--channel", channel)
        assert status == 2
        assert b"is not UTF-8, and QMP carries no other text" in err
        status, _, err = qemu_ring("migrate", source, destination)
        assert (status, err) == (0, b"")


def test_label(binary: Path, short_path: Path) -> None:
    """QEMU tells a name that is no UTF-8 with characters in its place."""
    socket = short_path / "q"
    arguments = ["-M", "q35,accel=tcg", "-m", "32", "-display", "none", "-S", "-nodefaults"]
    label = b"caf\xc3\xa9 \xe2\x86\x92 \xff"
    with killed_if_it_fails(
        subprocess.Popen(
            [binary, *arguments, "-name", label, "-qmp", f"unix:{socket},server=on,wait=off"]
        )
    ) as process:
        try:
            wait_until(lambda: listens(str(socket)), "QEMU listens")
            status, out, err = qemu_ring("top", "--once", socket)
            assert (status, err) == (0, b"")
            assert b"caf" in out
        finally:
            process.kill()
