"""What this host can do, which tests that leaves out, and a watch over what tests leave behind."""

from __future__ import annotations

import contextlib
import functools
import gc
import json
import os
import shutil
import signal
import subprocess
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from qemu_ring.errors import HostError
from qemu_ring.machine.kvm import KvmCapabilities, probe_kvm
from tests.command import COMMAND
from tests.priorities import KEEPS_PRIORITY, vcpus_yield
from tests.processes import Process, find_processes
from tests.shm import SHM, is_of_another, own_shm_folder
from tests.tiers import mark_alternating, mark_matrices, without_full

IMPLIED_MARKERS = {"ring": ("kvm", "qemu"), "kvm": ("qemu",), "qemu": ()}
LEFTOVER_DEADLINE = 60.0  # seconds that a test's processes and files have to go away after it
BUILD_SECONDS = 2400  # that the patched QEMU's build may take, on a slow machine
OWNER_VARIABLE = "QEMU_RING_TEST_OWNER"
PROC = Path("/proc")


@dataclass(frozen=True)
class Host:
    """What tests find on this machine."""

    qemu: Path | None
    kvm: KvmCapabilities | None
    why_no_kvm: str = ""

    def __str__(self) -> str:
        answers = {"kvm": self.kvm is not None, "ring": self.has_ring, "smm": self.has_smm}
        return ", ".join(f"{name}: {'yes' if has else 'no'}" for name, has in answers.items())

    @property
    def has_ring(self) -> bool:
        return self.kvm is not None and self.kvm.dirty_ring_max_bytes > 0

    @property
    def has_smm(self) -> bool:
        return self.kvm is not None and self.kvm.smm

    def lacks(self, marker: str) -> str | None:
        """Tell why tests with this marker cannot run here; None where they can."""
        if marker == "qemu" and self.qemu is None:
            return "no qemu-system-x86_64 on PATH, and QEMU_RING_QEMU is not set"
        if marker == "kvm" and self.kvm is None:
            return self.why_no_kvm
        if marker == "ring" and not self.has_ring:
            return "KVM has no dirty ring here"
        return None


@functools.cache
def this_host() -> Host:
    """Probe the host, once."""
    chosen = os.environ.get("QEMU_RING_QEMU")
    found = shutil.which(chosen or "qemu-system-x86_64")
    if chosen and found is None:  # a wrong path must not turn every test into a skip
        raise pytest.UsageError(f"QEMU_RING_QEMU={chosen} is not an executable file")
    qemu = Path(found) if found else None
    try:
        return Host(qemu, probe_kvm())
    except HostError as error:
        return Host(qemu, None, str(error))


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--full", action="store_true", help="run the tests marked full as well")


def pytest_configure(config: pytest.Config) -> None:
    """Where tests run side by side, which this process only looks after, no guest is in the way."""
    if config.getoption("numprocesses", None) and not hasattr(config, "workerinput"):
        stack = contextlib.ExitStack()
        stack.enter_context(vcpus_yield())
        config.add_cleanup(stack.close)


def pytest_collection_finish() -> None:
    """What is there when the tests begin is no test's garbage: collections need not look at it."""
    gc.collect()
    gc.freeze()


def pytest_report_header() -> str:
    return str(this_host())


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    terminalreporter.write_line(str(this_host()))
    if not terminalreporter.config.getoption("--full"):
        terminalreporter.write_line("tests marked full were left out; `make test-full` runs all")


@pytest.hookimpl(tryfirst=True)  # before -m selects, so that "not kvm" leaves out ring tests too
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in items:
        if "patched_qemu" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.build)
            item.add_marker(pytest.mark.timeout(BUILD_SECONDS + 120))
        for marker, implied in IMPLIED_MARKERS.items():
            if item.get_closest_marker(marker):
                for name in implied:
                    item.add_marker(name)
                needed = (*reversed(implied), marker)
                reasons = [reason for name in needed if (reason := this_host().lacks(name))]
                if reasons:
                    item.add_marker(pytest.mark.skip(reason=reasons[0]))
                break
    mark_matrices(items)
    mark_alternating(items)
    without_full(config, items)


@pytest.fixture(scope="session")
def qemu_path() -> Path:
    """The QEMU to test with: $QEMU_RING_QEMU, or the one on PATH."""
    qemu = this_host().qemu
    if qemu is None:
        pytest.fail("a test that uses qemu_path needs the marker qemu, kvm or ring")
    return qemu


@pytest.fixture(scope="session")
def patched_qemu() -> Path:
    """QEMU with this package's patches: $QEMU_RING_PATCHED_QEMU, or what `qemu-ring build` makes.

    The first test that asks for it waits for the build, unless the user's cache has it.
    """
    chosen = os.environ.get("QEMU_RING_PATCHED_QEMU")
    if chosen:
        return Path(chosen)
    command = [*COMMAND, "build", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=BUILD_SECONDS)
    assert done.returncode == 0, done.stderr
    return Path(json.loads(done.stdout)["qemu"]["path"])


@pytest.fixture
def shm_folder() -> Iterator[Path]:
    """A folder in /dev/shm, for memory with a name; nothing may be left in it."""
    with own_shm_folder() as folder:
        yield folder
        left = sorted(path.name for path in folder.iterdir())
    assert not left


@pytest.fixture(autouse=True)
def _nothing_left_behind(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> Iterator[None]:
    """Fail a test that leaves a process running, a file in /dev/shm, or guest RAM held.

    Autouse fixtures are set up first, so this one ends after those that the test asks for.
    """
    if request.node.get_closest_marker("qemu") is None:
        yield
        return
    if request.node.get_closest_marker("busy_guest"):
        monkeypatch.setenv(KEEPS_PRIORITY, "1")
    owner = str(uuid.uuid4())
    monkeypatch.setenv(OWNER_VARIABLE, owner)  # what the test starts inherits it, orphans too
    old_processes, old_files, old_held = _processes(owner).keys(), _shm_files(), _held_files()
    yield
    deadline = time.monotonic() + LEFTOVER_DEADLINE
    while True:
        processes = {p: name for p, name in _processes(owner).items() if p not in old_processes}
        files = [path for path in _shm_files() - old_files if not _is_used_by_others(path)]
        held = _held_files() - old_held
        if not processes and not files and not held:
            return
        if time.monotonic() > deadline:
            break
        time.sleep(0.02)
    for pid in processes:  # the next test shall not suffer for it
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    names = sorted([*map(str, files), *held])
    pytest.fail(f"left behind: processes {processes}, files {names}")


def _processes(owner: str) -> dict[int, str]:
    """Name the children of this process, and all processes started with `owner` in force."""
    mark = f"{OWNER_VARIABLE}={owner}"
    found = find_processes(lambda one: one.parent == os.getpid() or one.was_told(mark))
    return {one.pid: str(one) for one in found}


def _held_files() -> set[str]:
    """Name the memory files, unnamed ones too, that this process has open or mapped."""
    maps = (
        line.split(maxsplit=5)
        for line in (PROC / "self/maps").read_text(errors="replace").splitlines()
    )
    found = {f"{fields[5]}, inode {fields[4]}" for fields in maps if len(fields) == 6}
    for link in (PROC / "self/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # the one that lists the directory
            found.add(f"{link.readlink()}, inode {link.stat().st_ino}")
    return {name for name in found if name.startswith(("/memfd:qemu-ring", f"{SHM}/"))}


def _shm_files() -> set[Path]:
    """List what this user has in /dev/shm."""
    found = set()
    for path in SHM.iterdir():
        with contextlib.suppress(FileNotFoundError):
            if path.lstat().st_uid == os.getuid():
                found.add(path)
    return found


def _is_used_by_others(path: Path) -> bool:
    """Tell if another process has something under `path` open or mapped, or named it its own.

    Such a file is another session's on this machine; this one's processes are gone by then.
    """
    if is_of_another(path):
        return True

    def uses(process: Process) -> bool:
        return str(path) in process.maps or any(str(path) in name for name in process.opened)

    return bool(find_processes(uses))
