"""`qemu-ring run`: a guest from a description, its monitor for others, and every ending."""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import signal
import socket
import subprocess
import time
from pathlib import Path

import pytest

from qemu_ring.guestfile import load_guest, start_guest
from qemu_ring.machine import Machine
from qemu_ring.migration import HeldPrecopy, Pace
from qemu_ring.qmp import commands
from qemu_ring.verify import Block, compare
from tests.command import COMMAND
from tests.processes import is_running
from tests.tiers import attempts
from tests.waiting import DEADLINE, wait_until

from .conftest import RUN, Run, command, memory_of

pytestmark = pytest.mark.qemu

MIB = 1 << 20
GUESTS = Path(__file__).resolve().parents[3] / "guests"
TCG = GUESTS / "tcg.yaml"


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def command_line(pid: int | None) -> list[str]:
    return Path(f"/proc/{pid}/cmdline").read_bytes().decode().split("\0")


BUSY = """
memory: 32 MiB
accelerator: tcg
workload:
  regions: [{name: heap, address: 16 MiB, size: 8 MiB}]
  streams: [{pattern: loop}]
"""


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
async def test_signal_stops_the_guest_and_removes_the_socket(
    run_guest: Run, short_path: Path, number: signal.Signals, status: int
) -> None:
    path = short_path / "guest.qmp"
    guest = run_guest(TCG, "--qmp", path)
    assert guest.line == f"tcg.yaml runs: pid {guest.pid}, QMP at {path}\n"
    assert path.stat().st_mode & 0o777 == 0o600
    for _ in range(2):  # one after the other
        async with await Machine.attach(path) as machine:
            assert (await commands.query_status(machine.monitor)).running
    guest.process.send_signal(number)
    ended = f"qemu-ring: ended by {number.name}; everything started was stopped\n"
    assert guest.end() == (status, ended)
    assert not is_running(guest.pid)
    assert names(short_path) == []


async def test_it_ends_with_its_guest(run_guest: Run, short_path: Path) -> None:
    path = short_path / "guest.qmp"
    guest = run_guest(TCG, "--qmp", path)
    async with await Machine.attach(path) as machine:
        await commands.quit_(machine.monitor)
    assert guest.end() == (0, "")
    assert names(short_path) == []


def test_guest_that_dies_is_a_failure(run_guest: Run, short_path: Path) -> None:
    guest = run_guest(TCG, "--qmp", short_path / "guest.qmp")
    os.kill(guest.pid, signal.SIGKILL)
    status, err = guest.end()
    assert status == 4
    assert "tcg.yaml: QEMU ended unasked: killed by SIGKILL" in err
    assert names(short_path) == []


@pytest.mark.parametrize("attempt", attempts(6, 20))
def test_kill_9_leaves_nothing(qemu_path: Path, short_path: Path, attempt: int) -> None:
    """At moments spread over the start and after it; the leak watch looks for processes."""
    path = short_path / "guest.qmp"
    delay = random.Random(attempt).uniform(0.3, 1.5)
    with command(TCG, "--qemu", qemu_path, "--qmp", path) as process:
        time.sleep(delay)  # the moment is what is tried here
        assert process.poll() is None
        process.kill()
    wait_until(lambda: names(short_path) == [], "no socket is left")


async def test_start_at_once_after_kill_9(run_guest: Run, short_path: Path) -> None:
    """The dead one's watcher may come late: it must not remove the new one's socket."""
    path = short_path / "guest.qmp"
    for _ in range(3):
        old = run_guest(TCG, "--qmp", path)
        old.process.kill()
        old.process.wait()
    run_guest(TCG, "--qmp", path)
    async with await Machine.attach(path) as machine:
        assert (await commands.query_status(machine.monitor)).running


def test_socket_in_use_is_left_alone(run_guest: Run, short_path: Path, qemu_path: Path) -> None:
    path = short_path / "guest.qmp"
    guest = run_guest(TCG, "--qmp", path)
    again = [*RUN, str(TCG), "--qmp", str(path), "--qemu", str(qemu_path)]
    done = subprocess.run(again, capture_output=True, text=True, timeout=DEADLINE)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"qemu-ring: {path} is in use by another program; name another path\n"
    assert is_running(guest.pid)
    assert names(short_path) == [path.name]


async def test_socket_that_nobody_listens_on_is_replaced(run_guest: Run, short_path: Path) -> None:
    path = short_path / "guest.qmp"
    with contextlib.closing(socket.socket(socket.AF_UNIX)) as stale:
        stale.bind(str(path))
    run_guest(TCG, "--qmp", path)
    async with await Machine.attach(path) as machine:
        assert (await commands.query_status(machine.monitor)).running


async def test_paused_set_json_and_logs(
    run_guest: Run, short_path: Path, tmp_path: Path, qemu_path: Path
) -> None:
    path = short_path / "guest.qmp"
    guest = run_guest(TCG, "--qmp", path, "--paused", "--set", "vcpus=3", "--set", "memory=96M")
    assert guest.line.startswith("tcg.yaml paused: ")
    async with await Machine.attach(path) as machine:
        assert not (await commands.query_status(machine.monitor)).running
        assert len(await commands.query_cpus_fast(machine.monitor)) == 3
        assert [m.size for m in await commands.query_memdev(machine.monitor)] == [96 * MIB]
    guest.process.terminate()
    assert guest.end()[0] == 143
    with command(TCG, "--json", "--qemu", qemu_path, "--log-dir", tmp_path) as process:
        assert process.stdout is not None
        lines = iter(process.stdout.readline, "}\n")
        document = json.loads("".join(lines) + "}")
        process.terminate()
        assert process.wait(30) == 143
    assert document["schema"] == {"name": "qemu-ring.run", "version": 1}
    assert (document["qmp"], document["state"]) == (None, "runs")
    assert document["qemu"]["path"] == str(qemu_path)
    assert document["host"]["cpus"] > 0
    assert document["pid"] > 0
    assert "qemu-ring workload: running" in (tmp_path / "tcg.yaml.serial").read_text()


async def test_two_of_them_migrate_through_their_sockets(
    run_guest: Run, short_path: Path, patched_qemu: Path
) -> None:
    # Not by a QEMU older than 9.0: under TCG those lose pages in every migration.
    description = short_path / "guest.yaml"
    description.write_text(BUSY)
    paths = [short_path / name for name in ("source", "destination")]
    source = run_guest(description, "--qmp", paths[0], qemu=patched_qemu)
    waiting = ("--incoming", "defer", "--paused")
    destination = run_guest(description, "--qmp", paths[1], *waiting, qemu=patched_qemu)
    assert "waits for a migration" in destination.line
    async with (
        await Machine.attach(paths[0], name="source") as one,
        await Machine.attach(paths[1], name="destination") as two,
        HeldPrecopy(one, two, Pace(first_pass=16 * MIB)) as migration,  # for half a second
    ):
        await migration.hold()
        await migration.finish()
        assert not (await commands.query_status(two.monitor)).running
        fds = memory_of(source.pid, "ram"), memory_of(destination.pid, "ram")
        try:
            comparison = await compare([Block("ram", *fds, 32 * MIB)])
        finally:
            for fd in fds:
                os.close(fd)
        assert comparison.equal
        assert comparison.bytes_read > 8 * MIB


async def test_all_of_a_description_reaches_qemu(qemu_path: Path, tmp_path: Path) -> None:
    (tmp_path / "disk.img").write_bytes(bytes(MIB))
    (tmp_path / "told").write_bytes(b"from a file")
    (tmp_path / "guest.yaml").write_text("""
memory: 48 MiB
memory-directory: .
machine: q35
vcpus: 2
accelerator: tcg
accelerator-properties: {thread: single}
slots: [{name: slot, size: 4 MiB}]
backends: [{id: more, size: 2 MiB, share: false}]
devices:
  - {driver: ivshmem-plain, properties: {id: other, memdev: more, master: true}}
disks: [{path: disk.img, read-only: true}]
fw-cfg:
  opt/org.example/text: {text: "words, with a comma"}
  opt/org.example/file: {file: told}
trace: [runstate_set]
log: [guest_errors]
extra: [-name, described]
""")
    guest = load_guest(tmp_path / "guest.yaml")
    async with start_guest(guest, qemu_path, paused=True) as running:
        monitor = running.machine.monitor
        found = {m.id: (m.size, m.share) for m in await commands.query_memdev(monitor)}
        assert found == {
            "ram": (48 * MIB, True),
            "slot": (4 * MIB, True),
            "more": (2 * MIB, False),
        }
        pci = [d for bus in await commands.query_pci(monitor) for d in bus.devices]
        assert "other" in {device.qdev_id for device in pci}
        assert "disk.img" in str(await monitor.execute("query-block"))
        assert await monitor.execute("query-name") == {"name": "described"}
        fw_cfg = await commands.human(monitor, "info qtree")
        assert "fw_cfg" in fw_cfg
        assert len(await commands.query_cpus_fast(monitor)) == 2
        line = command_line(running.machine.pid)
        assert "tcg,thread=single" in line
        assert len([word for word in line if word.startswith("name=opt/org.example/")]) == 2
        await commands.cont(monitor)
        wait_until(lambda: "runstate_set" in running.machine.text("log"), "a trace event")
    assert names(tmp_path) == ["disk.img", "guest.yaml", "told"]


def test_mistakes_start_nothing(qemu_path: Path, tmp_path: Path) -> None:
    wrong = tmp_path / "guest.yaml"
    wrong.write_text("memory: 64 MX\nvcpus: none\n")
    done = subprocess.run([*RUN, str(wrong)], capture_output=True, text=True, timeout=DEADLINE)
    assert (done.returncode, done.stdout) == (2, "")
    assert re.fullmatch(
        r".*guest\.yaml:1: memory: .* is no size.*\n.*guest\.yaml:2: vcpus: must be .*\n",
        done.stderr,
    )


def test_schema_for_editors() -> None:
    done = subprocess.run([*RUN, "--schema"], capture_output=True, text=True, timeout=DEADLINE)
    assert done.returncode == 0
    assert json.loads(done.stdout)["properties"].keys() >= {"memory", "workload", "linux", "slots"}


def test_memory_without_a_name_can_be_verified(run_guest: Run, tmp_path: Path) -> None:
    """It is opened through the QEMUs that answer at the monitors."""
    source, destination = tmp_path / "source.qmp", tmp_path / "destination.qmp"
    run_guest(GUESTS / "tcg.yaml", "--qmp", source)
    run_guest(GUESTS / "tcg.yaml", "--qmp", destination, "--incoming", "defer")
    command = [*COMMAND, "migrate"]
    done = subprocess.run(
        [*command, source, destination, "--verify"], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert re.search(r"memory: 64\.\d MiB compared, all equal", done.stdout)
