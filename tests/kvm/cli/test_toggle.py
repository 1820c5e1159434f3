"""`qemu-ring toggle` on guests of `qemu-ring run`, and on others."""

from __future__ import annotations

import json
import os
import re
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Event, Thread

import pytest

from tests.command import COMMAND
from tests.waiting import DEADLINE

pytestmark = pytest.mark.ring

ROOT = Path(__file__).resolve().parents[3]


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*COMMAND, *arguments], capture_output=True, text=True, timeout=60)


def done(*arguments: str) -> str:
    ended = command(*arguments)
    assert (ended.returncode, ended.stderr) == (0, "")
    return ended.stdout


def refused(*arguments: str) -> tuple[int, str]:
    ended = command(*arguments)
    assert ended.stdout == ""
    assert ended.stderr.count("\n") == 1
    return ended.returncode, ended.stderr


@contextmanager
def running(
    qemu: Path, path: Path, *arguments: str, guest: str = "writers"
) -> Iterator[subprocess.Popen[str]]:
    """A guest in the foreground of another process, up."""
    process = subprocess.Popen(
        [
            *COMMAND,
            "run",
            str(ROOT / f"guests/{guest}.yaml"),
            "--qmp",
            str(path),
            "--qemu",
            str(qemu),
            *arguments,
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        assert "QMP at" in process.stdout.readline()
        yield process
    finally:
        process.terminate()
        process.communicate(timeout=DEADLINE)


def test_to_and_fro(patched_qemu: Path, tmp_path: Path) -> None:
    path = tmp_path / "guest.qmp"
    with running(patched_qemu, path, "--tracking", "bitmap") as process:
        said = done("toggle", "--to", "ring:1024", str(path))
        assert re.fullmatch(r"ring:1024: downtime [0-9.]+ ms, \d+ ms in all; pid \d+ now\n", said)
        assert json.loads(done("rings", "--json", str(path)))["size"] == 1024
        document = json.loads(
            done("toggle", "--to", "bitmap", "--policy", "read-only", "--json", str(path))
        )
        assert document["schema"] == {"name": "qemu-ring.toggle", "version": 1}
        assert (document["tracking"], document["state"]) == ("bitmap", "running")
        assert Path(f"/proc/{document['pid']}").exists()
        assert json.loads(done("policy", "get", "--json", str(path)))["policy"] == "read-only"
        assert process.poll() is None
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 130
        assert not Path(f"/proc/{document['pid']}").exists()
    assert not path.exists()


@pytest.mark.parametrize("qemu", ["qemu_path", "patched_qemu"])
def test_guest_with_slots(request: pytest.FixtureRequest, qemu: str, tmp_path: Path) -> None:
    path = tmp_path / "guest.qmp"
    with running(request.getfixturevalue(qemu), path, guest="slots") as process:
        assert "bitmap: downtime" in done("toggle", "--to", "bitmap", str(path))
        assert "ring:1024: downtime" in done("toggle", "--to", "ring:1024", str(path))
        assert process.poll() is None


def test_owner_killed_after_a_toggle_leaves_nothing(patched_qemu: Path, tmp_path: Path) -> None:
    path = tmp_path / "guest.qmp"
    with running(patched_qemu, path) as process:
        pid = json.loads(done("toggle", "--to", "ring:2048", "--json", str(path)))["pid"]
        gone = os.pidfd_open(pid)
        process.kill()
        with os.fdopen(gone) as watched:
            assert select.select([watched], [], [], 10)[0]


def test_paused_guest_stays_paused(patched_qemu: Path, tmp_path: Path) -> None:
    path = tmp_path / "guest.qmp"
    with running(patched_qemu, path, "--paused"):
        assert "it was paused" in done("toggle", "--to", "ring:1024", str(path))


def test_refused(patched_qemu: Path, tmp_path: Path) -> None:
    path = tmp_path / "guest.qmp"
    status, why = refused("toggle", "--to", "ring:1000", str(path))
    assert (status, "1000" in why) == (2, True)
    status, why = refused("toggle", "--to", "bitmap", str(tmp_path / "nobody"))
    assert status == 2
    assert "name the socket of qemu-ring run" in why
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(tmp_path / "other"))
        other.listen()
        status, why = refused("toggle", "--to", "bitmap", str(tmp_path / "other"))
        assert status == 3
        assert f"process {os.getpid()}, was not started by qemu-ring run" in why
    with running(patched_qemu, path):
        status, why = refused("toggle", "--to", "ring:1073741824", str(path))
        assert status == 3
        assert "over this host's limit" in why
        assert "RAM block" in done("slots", str(path))  # it goes on


def test_log_directory_that_is_gone(patched_qemu: Path, tmp_path: Path) -> None:
    path, logs = tmp_path / "guest.qmp", tmp_path / "logs"
    logs.mkdir()
    with running(patched_qemu, path, "--log-dir", str(logs)) as process:
        logs.rmdir()
        done("toggle", "--to", "bitmap", str(path))
        assert process.poll() is None
        assert "RAM block" in done("slots", str(path))


def test_all_but_the_tracking_stays(patched_qemu: Path, tmp_path: Path) -> None:
    path = tmp_path / "guest.qmp"
    arguments = ("--set", "accelerator-properties={kernel-irqchip: split}")
    with running(patched_qemu, path, "--tracking", "bitmap", *arguments):
        done("policy", "set", "quiesce", str(path))
        for tracking in ("ring:2048", "bitmap"):
            document = json.loads(done("toggle", "--to", tracking, "--json", str(path)))
            words = Path(f"/proc/{document['pid']}/cmdline").read_text()
            assert "kernel-irqchip=split" in words
            assert ("dirty-ring-size=2048" in words) == (tracking != "bitmap")
            assert json.loads(done("policy", "get", "--json", str(path)))["policy"] == "quiesce"
        qemu = document["qemu"]
        assert qemu["path"] == str(patched_qemu)
        assert (qemu["patched"], len(qemu["sha256"])) == (True, 64)
        shown = json.loads(done("slots", "--json", str(path)))["qemu"]
        assert (shown["path"], shown["sha256"]) == (qemu["path"], qemu["sha256"])


def test_monitor_that_another_client_takes(patched_qemu: Path, tmp_path: Path) -> None:
    """The answer tells the state; nobody has to ask the new QEMU for it."""
    path = tmp_path / "guest.qmp"
    over = Event()

    def hold() -> None:
        while not over.is_set():
            with socket.socket(socket.AF_UNIX) as client:
                try:
                    client.connect(str(path))
                    client.settimeout(0.2)
                    while not over.is_set():
                        with suppress(TimeoutError):
                            if not client.recv(4096):
                                break
                except OSError:
                    pass

    with running(patched_qemu, path):
        holder = Thread(target=hold)
        holder.start()
        try:
            document = json.loads(done("toggle", "--to", "bitmap", "--json", str(path)))
        finally:
            over.set()
            holder.join()
        assert (document["state"], document["tracking"]) == ("running", "bitmap")


def test_tcg_has_one_way_of_tracking(patched_qemu: Path, tmp_path: Path) -> None:
    path = tmp_path / "guest.qmp"
    with running(patched_qemu, path, "--set", "accelerator=tcg", "--set", "tracking=null"):
        status, why = refused("toggle", "--to", "bitmap", str(path))
        assert status == 2
        assert "does not use KVM" in why


def test_example_of_the_documentation_runs(patched_qemu: Path) -> None:
    (example,) = re.findall(
        r"```python\n(.*?)```", (ROOT / "docs/toggle.md").read_text(encoding="utf-8"), re.DOTALL
    )
    example = example.replace("find_qemu()", f"find_qemu({str(patched_qemu)!r})")
    ended = subprocess.run(
        [sys.executable, "-W", "error", "-c", example], capture_output=True, text=True, timeout=60
    )
    assert (ended.returncode, ended.stderr) == (0, "")
    assert "4096" in ended.stdout
