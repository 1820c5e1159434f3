"""Builds that are not alone, and builds that are ended: what is taken for whole, and what stays."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from qemu_ring.build import BuildOptions, BuildProgress, build_qemu
from tests.processes import Process, find_processes, killed_if_it_fails
from tests.waiting import DEADLINE, until, wait_until

# As the command line runs it; its patches are the test's.
DRIVER = """
import sys
from pathlib import Path
from qemu_ring.build import BuildOptions, build_qemu
from qemu_ring.cli.frame.running import run
from qemu_ring.errors import QemuRingError
source, patches, cache = map(Path, sys.argv[1:])
try:
    print(run(build_qemu(BuildOptions(source=source, patches=patches, cache=cache))).path)
except QemuRingError as error:
    sys.exit(error.exit_status)
"""


class Gate:
    """Where builds wait, between two files of theirs, until it is opened."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._waiting = path.with_name(f"{path.name}.waiting")  # a build makes it

    def open(self) -> None:
        self.path.touch()

    def close(self) -> None:
        self.path.unlink()
        self._waiting.unlink()

    def is_reached(self) -> bool:
        return self._waiting.exists()

    async def reached(self) -> None:
        await until(self.is_reached, "it compiles")


@pytest.fixture
def gate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Gate:
    """The gate of all builds of this test."""
    monkeypatch.setenv("GATE", str(tmp_path / "gate"))
    return Gate(tmp_path / "gate")


@pytest.fixture
def driver(options: BuildOptions, gate: Gate) -> Iterator[subprocess.Popen[str]]:
    """A process that builds; killed afterwards."""
    arguments = [str(path) for path in (options.source, options.patches, options.cache)]
    with killed_if_it_fails(
        subprocess.Popen(
            [sys.executable, "-c", DRIVER, *arguments], stdout=subprocess.PIPE, text=True
        )
    ) as process:
        yield process
        process.kill()


def processes_of(options: BuildOptions) -> list[Process]:
    """Those that run in the cache's work directory."""
    return find_processes(lambda one: one.works_in.is_relative_to(f"{options.cache}/work"))


def assert_nothing_stays(options: BuildOptions) -> None:
    cache = options.cache
    assert cache is not None
    wait_until(lambda: not list(cache.glob("work/*")), "its files are removed")
    assert list(cache.glob("builds/*")) == []


async def test_second_build_waits_for_the_first_and_takes_what_it_made(
    options: BuildOptions,
    gate: Gate,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("CONFIGURED", str(tmp_path / "configured"))
    waits = asyncio.Event()

    def note(progress: BuildProgress) -> None:
        if progress.stage == "waiting for another build to end":
            waits.set()

    first = asyncio.create_task(build_qemu(options))
    await gate.reached()
    second = asyncio.create_task(build_qemu(options, on_progress=note))
    await asyncio.wait_for(waits.wait(), DEADLINE)
    assert not first.done()
    assert not second.done()
    gate.open()
    made = await asyncio.wait_for(asyncio.gather(first, second), DEADLINE)
    assert [built.cached for built in made] == [False, True]
    assert made[0].path == made[1].path
    assert (tmp_path / "configured").read_text().count("configured") == 1


async def test_what_is_in_the_cache_waits_for_nobody(
    options: BuildOptions, tree: Path, gate: Gate
) -> None:
    gate.open()
    await build_qemu(options)
    gate.close()
    other = asyncio.create_task(build_qemu(replace(options, debug=True)))
    await gate.reached()
    assert (await asyncio.wait_for(build_qemu(options), DEADLINE)).cached is True
    gate.open()
    await asyncio.wait_for(other, DEADLINE)


async def test_cancelled_build_leaves_nothing(options: BuildOptions, gate: Gate) -> None:
    task = asyncio.create_task(build_qemu(options))
    await gate.reached()
    assert processes_of(options) != []
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert processes_of(options) == []
    assert_nothing_stays(options)


async def test_waiting_build_can_be_cancelled(options: BuildOptions, gate: Gate) -> None:
    first = asyncio.create_task(build_qemu(options))
    await gate.reached()
    waits = asyncio.Event()
    second = asyncio.create_task(build_qemu(options, on_progress=lambda p: _set(waits, p)))
    await asyncio.wait_for(waits.wait(), DEADLINE)
    second.cancel()
    with pytest.raises(asyncio.CancelledError):
        await second
    gate.open()
    assert (await asyncio.wait_for(first, DEADLINE)).cached is False


def _set(event: asyncio.Event, progress: BuildProgress) -> None:
    if progress.stage.startswith("waiting"):
        event.set()


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signal_ends_it_in_good_order(
    options: BuildOptions,
    driver: subprocess.Popen[str],
    gate: Gate,
    number: signal.Signals,
    status: int,
) -> None:
    wait_until(gate.is_reached, "it compiles")
    driver.send_signal(number)
    assert driver.wait(DEADLINE) == status
    assert processes_of(options) == []
    assert_nothing_stays(options)


def test_ctrl_c_in_a_terminal_reaches_only_the_command(
    options: BuildOptions, driver: subprocess.Popen[str], gate: Gate
) -> None:
    """The terminal signals the command's process group; no program of a build is in it."""
    wait_until(gate.is_reached, "it compiles")
    groups = {os.getpgid(one.pid) for one in processes_of(options)}
    assert groups
    assert os.getpgid(driver.pid) not in groups


def test_after_kill_9_programs_end_and_the_next_build_is_whole(
    options: BuildOptions, driver: subprocess.Popen[str], gate: Gate
) -> None:
    wait_until(gate.is_reached, "it compiles")
    assert options.cache is not None
    (stale,) = options.cache.glob("work/*")
    driver.kill()
    driver.wait(DEADLINE)
    wait_until(lambda: processes_of(options) == [], "its programs are gone")
    assert list(options.cache.glob("builds/*")) == []
    gate.open()
    built = asyncio.run(build_qemu(options))
    assert built.cached is False
    assert subprocess.run([built.path], capture_output=True).stdout.endswith(b", patched\n")
    assert not stale.exists()


@pytest.mark.parametrize("delay", [0.1, 0.25, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.2])
def test_kill_9_at_any_moment(
    options: BuildOptions, driver: subprocess.Popen[str], gate: Gate, delay: float
) -> None:
    """Whatever is found afterwards is whole: the builds there are, and the one made next."""
    gate.open()
    with contextlib.suppress(subprocess.TimeoutExpired):
        driver.wait(delay)
    driver.kill()
    driver.wait(DEADLINE)
    wait_until(lambda: processes_of(options) == [], "its programs are gone")
    built = asyncio.run(build_qemu(options))
    assert built.path.stat().st_size == built.manifest.size
    assert subprocess.run([built.path], capture_output=True).stdout.endswith(b", patched\n")
    assert asyncio.run(build_qemu(options)).cached is True
