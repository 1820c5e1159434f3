"""The commands as a user runs them: output, exit status, signals, and what is left behind."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.command import COMMAND
from tests.processes import Process, descendants
from tests.tiers import attempts
from tests.waiting import DEADLINE, wait_until

pytestmark = pytest.mark.ring


def run(*arguments: str, expect: int) -> subprocess.CompletedProcess[str]:
    done = subprocess.run([*COMMAND, *arguments], capture_output=True, text=True, timeout=240)
    assert done.returncode == expect, done.stderr
    done.stderr = without_reminders(done.stderr)
    return done


def without_reminders(stderr: str) -> str:
    """What is said, but for the lines that a run of more than 15 s prints: a busy host's may."""
    return re.sub(r"^qemu-ring: .* stale pages, .*, goes on\n", "", stderr, flags=re.MULTILINE)


def wait_gone(pids: set[int]) -> None:
    def left() -> set[int]:
        return {pid for pid in pids if Path(f"/proc/{pid}").exists()}

    wait_until(lambda: not left(), lambda: f"still there: {left()}")


def test_loss_is_told_in_words_and_by_the_exit_status(qemu_path: Path) -> None:
    done = run("prove", "--qemu", str(qemu_path), "--until-loss", expect=1)
    text = " ".join(done.stdout.split())
    assert "LOSES dirty bits on this host (ring:4096)" in text
    assert "The first stale page was found" in text
    assert "slot page " in text
    assert done.stderr == ""


def test_json_is_all_there_is_on_standard_output(qemu_path: Path) -> None:
    arguments = ("--json", "--removals", "10", "--control", "idle", "--vcpus", "2")
    done = run("prove", "--qemu", str(qemu_path), *arguments, expect=0)
    document = json.loads(done.stdout)
    assert document["schema"]["name"] == "qemu-ring.prove"
    assert document["stale_pages"] == 0
    assert document["control"] == "idle"
    assert document["removals"] == 10
    assert document["qemu"]["path"] == str(qemu_path)
    assert done.stderr == ""


def test_doctor_finds_this_host_fit(qemu_path: Path) -> None:
    done = run("doctor", "--qemu", str(qemu_path), expect=0)
    assert "All that `qemu-ring prove` needs is here." in done.stdout
    document = json.loads(run("doctor", "--qemu", str(qemu_path), "--json", expect=0).stdout)
    assert document["healthy"] is True
    assert document["host"]["kvm"]["api_version"] == 12
    findings = {check["name"]: check["finding"] for check in document["checks"]}
    assert findings["a guest starts"] == "ok"


def test_doctor_names_what_is_missing(tmp_path: Path) -> None:
    environment = {**os.environ, "PATH": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path)}
    done = subprocess.run(
        [*COMMAND, "doctor"], capture_output=True, text=True, timeout=60, env=environment
    )
    assert done.returncode == 3
    assert "apt-get install qemu-system-x86" in done.stdout
    assert "apt-get install util-linux" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (["--tracking", "ring:1073741824"], 3, ["over this host's limit", "ring:"]),
        (["--qemu", "/bin/ls"], 3, ["/bin/ls is no usable QEMU"]),
    ],
)
def test_host_errors(arguments: list[str], status: int, words: list[str]) -> None:
    done = run("prove", *arguments, expect=status)
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
    for word in words:
        assert word in done.stderr


def test_qemu_that_dies_in_the_middle_shows_its_last_words(qemu_path: Path, tmp_path: Path) -> None:
    """A wrapper that is QEMU, until it is killed while slots are being removed."""
    process = subprocess.Popen(
        [*COMMAND, "prove", "--qemu", str(qemu_path), "--seconds", "60"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    victim = _until_qemus(process, 2)
    os.kill(victim, signal.SIGKILL)
    out, err = process.communicate(timeout=DEADLINE)
    err = without_reminders(err)
    assert process.returncode == 4, err
    assert out == ""
    assert err.count("\n") == 1
    assert "QEMU ended unasked: killed by SIGKILL" in err


def test_qemu_that_dies_at_start_shows_its_last_words(qemu_path: Path, tmp_path: Path) -> None:
    wrapper = tmp_path / "qemu"
    wrapper.write_text(
        "#!/bin/sh\n"
        'case "$*" in *accel=tcg:kvm*) exec ' + str(qemu_path) + ' "$@";; esac\n'
        "echo first; echo the roof is on fire >&2; exit 7\n"
    )
    wrapper.chmod(0o755)
    done = run("prove", "--qemu", str(wrapper), expect=4)
    assert done.stderr.count("\n") == 1
    assert "did not start: exit status 7: first | the roof is on fire" in done.stderr


@pytest.mark.parametrize("form", [[], ["--json"]], ids=["words", "json"])
@pytest.mark.parametrize("command", ["doctor", "prove"])
def test_lost_answer_is_no_bad_one(qemu_path: Path, command: str, form: list[str]) -> None:
    """Status 1 would be "stale pages were found"."""
    short = ["--removals", "4", "--control", "idle"] if command == "prove" else []
    arguments = [*COMMAND, command, "--qemu", str(qemu_path), *short, *form]
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as gone:
        done = subprocess.run(
            arguments, stdout=gone, stderr=subprocess.PIPE, text=True, timeout=240
        )
    assert (done.returncode, without_reminders(done.stderr)) == (141, "")
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            arguments, stdout=full, stderr=subprocess.PIPE, text=True, timeout=240
        )
    assert done.returncode == 4
    said = without_reminders(done.stderr)
    assert said.startswith("qemu-ring: standard output: No space left on device; ")
    assert said.count("\n") == 1


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signals_end_it_in_good_order(qemu_path: Path, number: signal.Signals, status: int) -> None:
    process = subprocess.Popen(
        [*COMMAND, "prove", "--qemu", str(qemu_path), "--seconds", "60"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    _until_qemus(process, 1)
    below = {one.pid for one in descendants(process.pid)}
    process.send_signal(number)
    out, err = process.communicate(timeout=DEADLINE)
    assert process.returncode == status, err
    assert out == ""
    assert err == f"qemu-ring: ended by {number.name}; everything started was stopped\n"
    assert not {pid for pid in below if Path(f"/proc/{pid}").exists()}


@pytest.mark.parametrize("attempt", attempts(6, 20))
def test_kill_9_leaves_nothing(qemu_path: Path, attempt: int) -> None:
    """At moments spread over start, first pass, removals, completion and comparison."""
    delay = random.Random(attempt).uniform(0.05, 3.0)
    process = subprocess.Popen(
        [*COMMAND, "prove", "--qemu", str(qemu_path), "--seconds", "60"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    below: set[int] = set()
    end = time.monotonic() + delay
    while time.monotonic() < end:
        assert process.poll() is None
        below |= {one.pid for one in descendants(process.pid)}
        time.sleep(0.01)
    process.kill()
    process.wait(timeout=DEADLINE)
    wait_gone(below)
    # What was born after the last look, and files in /dev/shm, the autouse fixture looks for.


def _until_qemus(process: subprocess.Popen[str], count: int) -> int:
    """Wait until it runs so many QEMUs; returns the first one's process id."""

    def is_qemu(one: Process) -> bool:
        return "qemu-system" in one.command.partition(" ")[0] and "ivshmem-plain" in one.command

    deadline = time.monotonic() + DEADLINE
    while True:
        assert process.poll() is None
        assert time.monotonic() < deadline
        qemus = sorted(one.pid for one in descendants(process.pid, is_qemu))
        if len(qemus) >= count:
            return qemus[0]
        time.sleep(0.005)
