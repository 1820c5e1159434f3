"""Wrong input: one line with the cause and the next step, and the documented status."""

from __future__ import annotations

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
        (["prove", "--vcpus", "0"], ["0 vCPUs", "1 to 32"]),
        (["prove", "--seconds", "-1"], ["--seconds", "greater than 0"]),
        (["prove", "--removals", "0"], ["at least 1"]),
        (["prove", "--qemu", "/no/such/qemu"], ["does not exist", "name a qemu-system-x86_64"]),
        (["prove", "--qemu", "/etc"], ["/etc is a directory"]),
        (["prove", "--memory-dir", "/no/such"], ["/no/such", "does not exist"]),
        (["doctor", "--qemu", "/etc/passwd"], ["/etc/passwd is not a program"]),
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
    device: str,
    words: list[str],
) -> None:
    monkeypatch.setattr("qemu_ring.prove.run.probe_kvm", partial(probe_kvm, device))
    status, out, err = outcome(capsys, "prove", "--qemu", "/bin/true")
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
