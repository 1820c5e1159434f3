"""`qemu-ring migrate`, as a user runs it on QEMUs of his own."""

from __future__ import annotations

import json
import re
import signal
from functools import partial
from pathlib import Path

import pytest

from qemu_ring.cli.main import main
from tests.command import run_command, start_command
from tests.kvm.migration.qemus import Qemus
from tests.waiting import DEADLINE, wait_until

pytestmark = pytest.mark.kvm

MIB = 1 << 20

migrate = partial(run_command, "migrate")
start = partial(start_command, "migrate")


def test_words(qemus: Qemus) -> None:
    out, err = migrate(qemus.source, qemus.destination, "--verify")
    assert "precopy over fd: completed in" in out
    assert "the guest runs at the destination" in out
    assert re.search(r"memory: 4\d\.\d MiB compared, all equal", out)
    assert "downtime: " in out
    assert err == ""
    qemus.assert_alive()


def test_json(qemus: Qemus) -> None:
    options = ("--channel", "tcp:127.0.0.1:0", "--multifd", "2", "--max-bandwidth", "200M")
    out, err = migrate(qemus.source, qemus.destination, "--verify", "--json", *options, expect=0)
    document = json.loads(out)
    assert document["schema"] == {"name": "qemu-ring.migrate", "version": 1}
    assert document["stale_pages"] == 0
    assert document["aftermath"]["guest_at"] == "destination"
    assert document["totals"]["bytes_multifd"] > 0
    assert document["timeline"]["iterations"][0]["number"] == 1
    assert document["qemu"]["version"] == document["destination_qemu"]["version"]
    assert document["downtime"]["seconds"] > 0
    assert document["differences"] == []
    assert err == ""
    qemus.assert_alive()


@pytest.mark.parametrize("which", ["qemu_path", "patched_qemu"])
def test_json_of_two_that_differ(
    which: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    binary: Path = request.getfixturevalue(which)
    qemus = Qemus(tmp_path, binary, extra_twin=("-machine", "smm=off"))
    try:
        out, err = migrate(qemus.source, qemus.destination, "--json")
        [found] = json.loads(out)["differences"]
        assert "smm" in found["what"]
        assert found["fatal"] is False
        assert err.startswith("note: ")
        qemus.assert_alive()
    finally:
        qemus.stop()


@pytest.mark.ring
@pytest.mark.parametrize("which", ["qemu_path", "patched_qemu"])
def test_absorbed_pages_are_told_by_a_qemu_that_counts_them(
    which: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    binary: Path = request.getfixturevalue(which)
    qemus = Qemus(tmp_path, binary, accelerator="kvm,dirty-ring-size=4096")
    try:
        slow = ("--max-bandwidth", "32 MiB", "--downtime-limit", "100ms")
        out, _ = migrate(qemus.source, qemus.destination, "--verify", *slow)
        words = "pages were dirty again when they were sent, and were not sent once more for that"
        assert (words in out) == (which == "patched_qemu")
    finally:
        qemus.stop()


def test_memory_that_cannot_be_compared_is_told_first(qemu_path: Path, tmp_path: Path) -> None:
    one = "memory-backend-file,share=on,mem-path={folder}/one.ram"
    qemus = Qemus(tmp_path, qemu_path, memory=one)
    try:
        out, err = migrate(qemus.source, qemus.destination, "--verify", expect=2)
        assert out == ""
        assert err.count("\n") == 1
        assert "memory ram: both sides have the same file, nothing can differ" in err
        qemus.assert_alive()
    finally:
        qemus.stop()


def test_tls_needs_a_name(qemus: Qemus, tmp_path: Path) -> None:
    options = ("--tls-dir", str(tmp_path))
    _, err = migrate(qemus.source, qemus.destination, *options, expect=2)
    assert "TLS by fd needs the name in the destination's certificate" in err
    _, err = migrate(qemus.source, "--to-file", str(tmp_path / "saved"), *options, expect=2)
    assert "its handshake needs an answer; use tcp, unix or fd" in err
    qemus.assert_alive()


def test_to_a_file_and_back(qemus: Qemus, tmp_path: Path) -> None:
    saved = tmp_path / "saved"
    out, _ = migrate(qemus.source, "--to-file", str(saved))
    assert f"precopy over file:{saved}: completed" in out
    assert saved.stat().st_size > MIB
    _, err = migrate(qemus.source, "--to-file", str(saved), expect=2)
    assert "is there already; replace it with --overwrite" in err
    options = ("--leave-paused", "--json")
    out, err = migrate(qemus.destination, "--from-file", str(saved), *options, expect=0)
    document = json.loads(out)
    assert document["schema"] == {"name": "qemu-ring.restore", "version": 1}
    assert document["channel"] == f"file:{saved}"
    assert document["state"] == "paused"
    assert err == ""
    assert (tmp_path / "source.ram").read_bytes() == (tmp_path / "twin.ram").read_bytes()
    qemus.assert_alive()


def test_from_no_file(qemus: Qemus, tmp_path: Path) -> None:
    _, err = migrate(qemus.destination, "--from-file", str(tmp_path / "none"), expect=2)
    assert "none cannot be opened: No such file" in err
    assert err.count("\n") == 1
    _, err = migrate(qemus.destination, "--from-file", str(tmp_path / "source.ram"), expect=2)
    assert "source.ram holds no saved guest" in err
    (tmp_path / "begun").write_bytes(b"QEVM")
    _, err = migrate(qemus.source, "--from-file", str(tmp_path / "begun"), expect=2)
    assert "it is in state running; start it with -incoming defer" in err
    qemus.assert_alive()


def test_rule_aborts_it(qemus: Qemus) -> None:
    options = ("--max-bandwidth", "1M", "--abort-seconds", "0.3")
    out, err = migrate(qemus.source, qemus.destination, *options, expect=4)
    assert out == ""
    assert err.count("\n") == 1
    assert "aborted: it took longer than 0.3 s; the guest runs on at the source" in err
    assert qemus.processes[0].poll() is None


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signals_leave_the_guest_at_the_source(
    qemus: Qemus, number: signal.Signals, status: int, tmp_path: Path
) -> None:
    process = start(qemus.source, "--to-file", str(tmp_path / "saved"), "--max-bandwidth", "1M")

    def has_begun() -> bool:
        assert process.poll() is None
        return bool(list(tmp_path.glob(".saved.*")))

    wait_until(has_begun, "it saves")
    process.send_signal(number)
    out, err = process.communicate(timeout=DEADLINE)
    assert (process.returncode, out) == (status, "")
    assert err.count("\n") == 1
    assert not list(tmp_path.glob("*saved*"))
    # The source goes on, and can be migrated.
    migrate(qemus.source, qemus.destination)
    qemus.assert_alive()


def test_what_qemu_refuses_is_one_line(qemus: Qemus) -> None:
    out, err = migrate(qemus.source, qemus.destination, "--dirty-limit", "20M", expect=3)
    assert out == ""
    assert err.count("\n") == 1
    assert "dirty-limit" in err
    swapped = migrate(qemus.destination, qemus.source, expect=2)
    assert "cannot migrate, it is in state inmigrate; name the running guest first" in swapped[1]
    qemus.assert_alive()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["a"], "name a DESTINATION, --to-file FILE, --to-command"),
        (["a", "b", "--to-file", "c"], "one of them"),
        (["a", "--from-file", "b", "--to-file", "c"], "one of them"),
        (["a", "--from-file", "b", "--kind", "postcopy"], "a channel that goes both ways"),
        (["a", "b", "--channel", "pigeon"], "no such channel: pigeon; use unix"),
        (["a", "b", "--channel", "tcp:host"], "no such channel"),
        (["a", "--to-file", "c", "--channel", "fd"], "leave out --channel"),
        (["a", "--to-command", "cat", "--channel", "fd"], "a command is a channel of its own"),
        (["a", "--to-command", "cat", "--exec-incoming", "cat"], "needs --channel exec"),
        (["a", "--to-command", " "], "the command is empty; name one"),
        (["a", "--from-command", ""], "the command is empty; name one"),
        (["a", "--to-command", "cat", "--from-command", "cat"], "one of them"),
        (["a", "b", "--to-command", "cat"], "one of them"),
        (["a", "--to-command", "cat", "--verify"], "--verify needs a destination"),
        (["a", "--to-command", "cat", "--mapped-ram"], "to a file only"),
        (["a", "--to-command", "cat", "--multifd", "2"], "is a single connection"),
        (["a", "--to-command", "cat", "--overwrite"], "--overwrite needs --to-file"),
        (["a", "--from-command", "cat", "--check"], "--check is for a migration that is to begin"),
        (["a", "b", "--zero-copy"], "--zero-copy needs --multifd"),
        (["a", "b", "--zero-copy", "--multifd", "2"], "--zero-copy needs the channel tcp"),
        (["a", "--to-file", "c", "--verify"], "--verify needs a destination"),
        (["a", "b", "--compression", "zlib"], "--compression needs --multifd"),
        (["a", "b", "--tls-hostname", "x"], "--tls-hostname needs --tls-dir"),
        (["a", "b", "--preempt"], "--preempt needs --kind postcopy"),
        (["a", "b", "--postcopy-after", "2"], "--postcopy-after needs --kind postcopy"),
        (["a", "b", "--auto-converge", "--dirty-limit", "1M"], "two ways to do one thing"),
        (["a", "b", "--max-bandwidth", "fast"], "'fast' is no rate"),
        (["a", "b", "--kind", "cpr-reboot"], "saves to a file"),
        (["a", "b", "--abort-seconds", "-1"], "-1 is out of range"),
        (["a", "b", "--abort-seconds", "inf"], "no finite number"),
        (["a", "b", "--downtime-limit", "nan"], "no finite number"),
        (["a", "b", "--downtime-limit", "2001"], "--downtime-limit 2001 is out of range"),
        (["a", "b", "--downtime-limit", "0"], "--downtime-limit 0 s would be no limit"),
        (["a", "b", "--downtime-limit", "900us"], "--downtime-limit 0.0009 s would be no"),
        (["a", "b", "--max-bandwidth", "9"], "--max-bandwidth 9 would be no limit: QEMU"),
        (["a", "b", "--switchover-bandwidth", "0.9K"], "--switchover-bandwidth 922 would be"),
        (["a", "b", "--multifd", "256"], "use 1 to 255"),
        (["a", "b", "--max-bandwidth", "9999999999G"], "is too much"),
        (["a", "b", "--compression-level", "1"], "--compression-level needs --compression"),
        (
            ["a", "b", "--multifd=2", "--compression=zlib", "--compression-level=10"],
            "--compression-level 10 is out of range; use 0 to 9",
        ),
        (["a", "b", "--direct-io"], "--direct-io needs --mapped-ram"),
        (["a", "b", "--dirty-limit", "1500K"], "whole MiB"),
        (["a", "b", "--xbzrle", "3M"], "no power of two"),
        (["a", "b", "--channel", "exec:cat"], "--exec-incoming COMMAND"),
        (["a", "b", "--kind", "background-snapshot"], "--to-file FILE"),
        (["a", "b", "--tls-dir", "x"], "give it with --tls-hostname NAME"),
        (["a", "b", "--overwrite"], "--overwrite needs --to-file"),
        (["a", "a"], "the same monitor"),
        (["a", "--to-file", "/dev/null"], "no regular file"),
        (["a", "--to-file", "/tmp"], "a directory"),
        (["a", "--to-file", "/no/such/file"], "/no/such is no directory"),
        (["a", "--from-file", "/dev/null"], "no regular file"),
        (["a", "--from-file", "/etc/passwd"], "holds no saved guest"),
        (["a", "b", "--exec-incoming", "x"], "needs --channel exec"),
        (["a", "b", "--mapped-ram"], "to a file only"),
    ],
)
def test_wrong_input_is_one_line(
    capsys: pytest.CaptureFixture[str], arguments: list[str], words: str
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["migrate", *arguments])
    assert ended.value.code == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.count("\n") == 1
    assert words in said.err


def test_nobody_there(tmp_path: Path) -> None:
    out, err = migrate(str(tmp_path / "none"), str(tmp_path / "neither"), expect=2)
    assert out == ""
    assert err.count("\n") == 1
    assert "is QEMU running" in err
