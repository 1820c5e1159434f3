"""Work in a process of its own: what comes back, and what does not stay."""

from __future__ import annotations

import os
import select
import subprocess
import sys
import threading
from functools import partial
from pathlib import Path

import pytest

from qemu_ring.errors import ExitStatus, UsageError
from qemu_ring.experiment.errors import StoreError
from qemu_ring.report.apart import done_apart
from tests.waiting import DEADLINE, wait_until

# In a process without other threads, which pytest's may have.
ALONE = """
import os, signal, sys, time
from functools import partial
from qemu_ring.report.apart import done_apart
from qemu_ring.errors import QemuRingError
from qemu_ring.experiment.errors import StoreError
"""


def alone(program: str) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", ALONE + program],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_result_comes_back() -> None:
    said = alone("ours = os.getpid()\nprint(done_apart(os.getpid) != ours, os.getpid() == ours)")
    assert said == "True True\n"


def test_much_comes_back() -> None:
    assert alone("print(len(done_apart(partial(bytes, 50_000_000))))") == "50000000\n"


def test_error_comes_back() -> None:
    program = """
def fail():
    raise StoreError("damaged", hint="put it back")
try:
    done_apart(fail)
except StoreError as error:
    print(error, error.hint, error.exit_status)
"""
    error = StoreError("damaged", hint="put it back")
    assert alone(program) == f"{error} {error.hint} {error.exit_status}\n"
    assert error.exit_status in ExitStatus


def test_child_that_is_killed() -> None:
    program = """
try:
    done_apart(lambda: os.kill(os.getpid(), signal.SIGKILL))
except QemuRingError as error:
    print(error)
"""
    assert "has ended: -9" in alone(program)


def test_memory_is_given_back() -> None:
    program = """
def work():
    return len(b"x" * 300_000_000)
print(done_apart(work))
print(int(open("/proc/self/status").read().split("VmHWM:")[1].split()[0]) >> 10)
"""
    size, most = map(int, alone(program).split())
    assert size == 300_000_000
    assert most < 200


def test_no_child_outlives_us(tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    program = f"""
def work():
    open({str(mark)!r}, "w").write(str(os.getpid()))
    os.rename({str(mark)!r}, {str(mark)!r} + ".whole")
    time.sleep(600)
done_apart(work)
"""
    process = subprocess.Popen([sys.executable, "-c", ALONE + program])
    whole = tmp_path / "mark.whole"
    wait_until(whole.exists, "the child works")
    child = os.pidfd_open(int(whole.read_text()))
    try:
        process.kill()
        process.wait(timeout=DEADLINE)
        wait_until(lambda: select.select([child], [], [], 0)[0], "it has ended")
    finally:
        os.close(child)


def test_here_where_there_are_other_threads() -> None:
    wait = threading.Event()
    thread = threading.Thread(target=wait.wait)
    thread.start()
    try:
        assert done_apart(os.getpid) == os.getpid()
        with pytest.raises(UsageError, match="no"):
            done_apart(partial(_fail, "no"))
    finally:
        wait.set()
        thread.join()


def _fail(words: str) -> None:
    raise UsageError(words)
