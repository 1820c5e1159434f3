"""The real build, through the public command: what it makes, how it is found, how it is ended."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import time
from pathlib import Path

import pytest

from qemu_ring.build import built_binary
from qemu_ring.build.cache import Cache
from qemu_ring.machine import probe_qemu
from tests.command import COMMAND
from tests.processes import Process, find_processes, killed_if_it_fails
from tests.waiting import wait_until

pytestmark = [
    pytest.mark.qemu,
    pytest.mark.skipif(
        "QEMU_RING_PATCHED_QEMU" in os.environ, reason="another QEMU is to be tested than our own"
    ),
]

BUILD = [*COMMAND, "build"]
DEADLINE = 600.0  # seconds; beside other work it takes long until there are compilers


async def test_it_is_qemu_10_0_with_all_that_is_needed(patched_qemu: Path) -> None:
    binary = await probe_qemu(patched_qemu)
    assert binary.version.startswith("10.0.")
    assert "(qemu-ring " in binary.version
    assert binary.kvm
    assert binary.ivshmem
    assert binary.ring_property == "dirty-ring-size"
    assert {"pc", "q35"} <= binary.machines


def test_manifest_tells_what_it_was_made_of(patched_qemu: Path) -> None:
    done = subprocess.run([*BUILD, "--json"], capture_output=True, text=True, check=True)
    document = json.loads(done.stdout)
    assert document["schema"] == {"name": "qemu-ring.build", "version": 1}
    assert document["cached"] is True
    assert document["manifest"]["version"].startswith("10.0.")
    assert document["manifest"]["sha256"] == document["qemu"]["sha256"]
    assert document["host"]["kernel"] == os.uname().release
    assert json.loads(patched_qemu.with_name("manifest.json").read_text()) == document["manifest"]


def test_second_call_is_quick_and_prints_the_path_alone(patched_qemu: Path) -> None:
    # Of the processor, because a busy host makes everything take longer.
    seconds = []
    for _ in range(3):
        begin = _cpu_seconds_of_children()
        done = subprocess.run(BUILD, capture_output=True, text=True, check=True)
        seconds.append(_cpu_seconds_of_children() - begin)
        assert done.stdout == f"{patched_qemu}\n"
        assert "built before" in done.stderr
    assert min(seconds) < 1.0


def test_other_commands_find_it_at_once(
    patched_qemu: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # In a cache of its own, because the user's may have a newer one, of another source.
    builds = tmp_path / "qemu-ring/builds"
    builds.mkdir(parents=True)
    (builds / "one").symlink_to(patched_qemu.parent)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    seconds = []
    for _ in range(3):
        begin = time.process_time()
        assert built_binary() == builds / "one" / patched_qemu.name
        seconds.append(time.process_time() - begin)
    assert min(seconds) < 0.05


def test_plain_guest_starts_with_the_distributions_firmware(patched_qemu: Path) -> None:
    if not Path("/usr/share/seabios/bios-256k.bin").exists():
        pytest.skip("Debian's seabios is not installed")
    arguments = ["-accel", "tcg", "-display", "none", "-monitor", "none", "-serial", "none"]
    arguments += ["-chardev", "stdio,id=log", "-device", "isa-debugcon,iobase=0x402,chardev=log"]
    with killed_if_it_fails(
        subprocess.Popen(
            [patched_qemu, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline().startswith("SeaBIOS (version")
        process.kill()


@pytest.mark.parametrize(
    ("number", "status"),
    [  # those that can be handled are tried on a small tree, too: tests/unit/build/test_end.py
        (signal.SIGKILL, -signal.SIGKILL),
        pytest.param(signal.SIGINT, 130, marks=pytest.mark.full),
        pytest.param(signal.SIGTERM, 143, marks=pytest.mark.full),
    ],
)
def test_ended_while_it_compiles(
    patched_qemu: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    number: signal.Signals,
    status: int,
) -> None:
    """ninja puts each compiler into a process group of its own; they end all the same."""
    mine = tmp_path / "qemu-ring"
    mine.mkdir()
    for name in ("sources", "tools"):  # so that nothing is fetched anew
        (mine / name).symlink_to(Cache().root / name)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with killed_if_it_fails(
        subprocess.Popen(BUILD, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    ) as process:
        try:
            wait_until(
                lambda: "\n[20/" in _log(mine) or _ended(process), "it compiles", seconds=DEADLINE
            )
            wait_until(lambda: _processes_in(mine, "cc1"), "there are compilers")
            process.send_signal(number)
            assert process.wait(DEADLINE) == status
        finally:
            process.kill()
    if number != signal.SIGKILL:
        assert _processes_in(mine) == []
        wait_until(lambda: not list(mine.glob("work/*")), "its files are removed")
    wait_until(lambda: _processes_in(mine) == [], "all that it started is gone")
    assert list(mine.glob("builds/*")) == []


def _cpu_seconds_of_children() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _ended(process: subprocess.Popen[bytes]) -> bool:
    if process.poll() is None:
        return False
    assert process.stderr is not None
    pytest.fail(f"it ended by itself: {process.stderr.read().decode()}")


def _log(cache: Path) -> str:
    return "".join(path.read_text(errors="replace") for path in cache.glob("logs/*.log"))


def _processes_in(cache: Path, name: str = "") -> list[int]:
    """Those that work in the cache's work directory, of this name."""

    def matches(process: Process) -> bool:
        works = process.works_in.is_relative_to(cache / "work")
        return works and process.state != "Z" and name in process.name

    return [one.pid for one in find_processes(matches)]
