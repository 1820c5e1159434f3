"""Wrong input: one line with the cause and the next step, and the documented status."""

from __future__ import annotations

import socket
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import pytest

from qemu_ring.cli.main import main
from qemu_ring.machine import probe_kvm


def outcome(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[object, str, str]:
    with pytest.raises(SystemExit) as ended:
        main(list(arguments))
    said = capsys.readouterr()
    return ended.value.code, said.out, said.err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["no-such-command"], ["No such command", "try 'qemu-ring --help'"]),
        (["prove", "--no-such-option"], ["No such option", "try 'qemu-ring prove --help'"]),
        (["prove", "--removals", "many"], ["many", "integer"]),
        (["prove", "--machine", "microvm"], ["microvm", "pc", "q35"]),
        (["prove", "--tracking", "ring:5000"], ["no power of two", "ring:8192"]),
        (["prove", "--tracking", "log"], ["no such tracking", "ring:4096"]),
        (["prove", "--vcpus", "0"], ["'--vcpus'", "0 is out of range", "1 to 32"]),
        (["prove", "--seconds", "-1"], ["'--seconds'", "-1 is out of range", "use 0.001 to"]),
        (["prove", "--seconds", "1e400"], ["'--seconds'", "no finite number"]),
        (["prove", "--rate", "nan"], ["'--rate'", "no finite number"]),
        (["prove", "--removals", "0"], ["'--removals'", "use 1 to"]),
        (["prove", "--qemu", ""], ["'--qemu'", "name a qemu-system-x86_64"]),
        (["build", "--jobs", "0"], ["'--jobs'", "use 1 to 1024"]),
        (["dirty-rate", "/no", "--seconds", "inf"], ["'--seconds'", "no finite number"]),
        (["limit", "set", "/no", "9" * 400], ["is too much"]),
        (["top", "/no", "--interval", "nan"], ["'--interval'", "no finite number"]),
        (["policy", "set", "/no", "lossless"], ["no such policy: lossless", "quiesce"]),
        (["policy", "set", "quiesce", "/no/such"], ["/no/such: No such file"]),
        (["policy", "set", "/no/such", "quiesce"], ["/no/such: No such file"]),
        (["slots", "/no/such"], ["no QMP session on /no/such: No such file", "-qmp unix:PATH"]),
        (["slots", "/etc/passwd"], ["no QMP session on /etc/passwd: not a socket"]),
        (["slots", "/tmp"], ["/tmp: not a socket"]),
        (["slots", ""], ["an empty path", "HOST:PORT"]),
        (["slots", "host:99999"], ["host:99999: no such port", "1 to 65535"]),
        (["top", "/etc/passwd", "--once"], ["'/etc/passwd': not a socket"]),
        (["top", "host:0", "--once"], ["no such port"]),
        (["prove", "--qemu", "/no/such/qemu"], ["does not exist", "name a qemu-system-x86_64"]),
        (["prove", "--qemu", "/etc"], ["/etc is a directory"]),
        (["prove", "--memory-dir", "/no/such"], ["/no/such", "does not exist"]),
        (["doctor", "--qemu", "/etc/passwd"], ["/etc/passwd is not a program"]),
        (["torture", "--vcpus", "31"], ["'--vcpus'", "31 is out of range", "1 to 30"]),
        (["torture", "--seed", "-1"], ["'--seed'", "-1 is out of range"]),
        (["torture", "--output", "/no/such/file"], ["/no/such is no directory"]),
        (["torture", "again"], ["No such command", "try 'qemu-ring torture --help'"]),
        (["torture", "replay", "/no/such"], ["/no/such: No such file"]),
        (["torture", "replay", "/etc/passwd"], ["is no JSON", "name what torture wrote"]),
        (["doctor", "extra"], ["unexpected extra argument"]),
    ],
)
def test_usage_errors(
    capsys: pytest.CaptureFixture[str], arguments: list[str], words: list[str]
) -> None:
    status, out, err = outcome(capsys, *arguments)
    assert status == 2
    assert out == ""
    assert err.startswith("qemu-ring: ")
    assert err.count("\n") == 1
    for word in words:
        assert word in err


@pytest.mark.parametrize("command", ["prove", "torture"])
@pytest.mark.parametrize(
    ("device", "words"),
    [
        ("/no/such/kvm", ["/no/such/kvm", "modprobe"]),
        ("/dev/null", ["/dev/null", "not a KVM device"]),
    ],
)
def test_host_without_kvm(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    command: str,
    device: str,
    words: list[str],
) -> None:
    monkeypatch.setattr("qemu_ring.prove.probes.probe_kvm", partial(probe_kvm, device))
    status, out, err = outcome(capsys, command, "--qemu", "/bin/true")
    assert (status, out, err.count("\n")) == (3, "", 1)
    for word in words:
        assert word in err


def test_help_documents_the_exit_statuses(capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = outcome(capsys, "--help")
    assert status == 0
    assert "Exit status: 0 done and good; 1 done and the answer is bad" in " ".join(out.split())
    assert {"doctor", "prove"} <= set(out.split())


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = outcome(capsys, "--version")
    assert status == 0
    assert out.startswith("qemu-ring, version ")


def test_monitor_that_others_wait_for(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """As that of a QEMU which serves one client while more have connected."""
    path = str(tmp_path / "busy.qmp")
    with ExitStack() as stack:
        busy = stack.enter_context(socket.socket(socket.AF_UNIX))
        busy.bind(path)
        busy.listen(0)
        for _ in range(100):
            client = stack.enter_context(socket.socket(socket.AF_UNIX))
            client.setblocking(False)
            try:
                client.connect(path)
            except BlockingIOError:
                break
        status, _, err = outcome(capsys, "slots", path)
        assert (status, err.count(path)) == (4, 1)
        assert "others wait for it already; QEMU serves one client" in err
        status, out, err = outcome(capsys, "top", "--once", "--interval", "0.1", path)
    assert status == 4
    assert "no answer for" in out
    assert "QEMU serves one client per monitor: another holds it\n" in err


def test_bug_is_no_verdict(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Python's own exit status for a traceback is 1, which would mean "stale pages found"."""

    def broken(_: str | None) -> Path:
        raise ZeroDivisionError("oops")

    monkeypatch.setattr("qemu_ring.cli.prove.find_qemu", broken)
    status, _, err = outcome(capsys, "prove")
    assert status == 4
    assert "ZeroDivisionError" in err
    assert "a bug in qemu-ring" in err
