"""`qemu-ring migrate`, as a user runs it on QEMUs of his own."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from qemu_ring.cli.main import main
from qemu_ring.guest import Pattern, Region, Stream, Workload, image_bytes

pytestmark = pytest.mark.kvm

MIB = 1 << 20
RAM = 40 * MIB


def start(*arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-W", "error", "-m", "qemu_ring.cli.main", "migrate", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run(*arguments: str, expect: int) -> tuple[str, str]:
    process = start(*arguments)
    out, err = process.communicate(timeout=60)
    assert process.returncode == expect, err
    return out, err


class Qemus:
    """A guest that writes, and its twin, each with a QMP socket and memory with a name."""

    def __init__(self, folder: Path, binary: Path) -> None:
        self.source, self.destination = str(folder / "source.qmp"), str(folder / "twin.qmp")
        region = Region("ram", 8 * MIB, 32 * MIB)
        span = Workload((region,), (Stream(),)).span("ram")
        workload = Workload((region,), (Stream(Pattern.LOOP, span, pages_per_second=4000),))
        (folder / "firmware").write_bytes(image_bytes())
        common = ["-accel", "kvm", "-machine", "pc,memory-backend=ram", "-m", f"size={RAM}B"]
        common += ["-nodefaults", "-display", "none", "-bios", str(folder / "firmware")]
        for name, content in workload.fw_cfg(1_000_000_000).items():
            path = folder / name.replace("/", "-")
            path.write_bytes(content)
            common += ["-fw_cfg", f"name={name},file={path}"]
        self.processes = []
        for name, more in (("source", []), ("twin", ["-incoming", "defer"])):
            memory = f"memory-backend-file,id=ram,share=on,size={RAM}B,mem-path={folder / name}.ram"
            monitor = f"unix:{folder / name}.qmp,server=on,wait=off"
            self.processes.append(
                subprocess.Popen(
                    [str(binary), *common, "-object", memory, "-qmp", monitor, *more],
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                )
            )
        deadline = time.monotonic() + 20
        while not all(Path(path).exists() for path in (self.source, self.destination)):
            assert time.monotonic() < deadline
            time.sleep(0.005)

    def assert_alive(self) -> None:
        assert [process.poll() for process in self.processes] == [None, None]

    def stop(self) -> None:
        for process in self.processes:
            process.kill()
            process.wait(timeout=10)


@pytest.fixture
def qemus(qemu_path: Path, tmp_path: Path) -> Iterator[Qemus]:
    started = Qemus(tmp_path, qemu_path)
    yield started
    started.stop()


def test_words(qemus: Qemus) -> None:
    out, err = run(qemus.source, qemus.destination, "--verify", expect=0)
    assert "precopy over unix: completed in" in out
    assert "the guest runs at the destination" in out
    assert "40.0 MiB compared, all equal" in out
    assert "downtime: " in out
    assert err == ""
    qemus.assert_alive()


def test_json(qemus: Qemus) -> None:
    options = ("--channel", "tcp:127.0.0.1:0", "--multifd", "2", "--max-bandwidth", "200M")
    out, err = run(qemus.source, qemus.destination, "--verify", "--json", *options, expect=0)
    document = json.loads(out)
    assert document["schema"] == {"name": "qemu-ring.migrate", "version": 1}
    assert document["stale_pages"] == 0
    assert document["aftermath"]["guest_at"] == "destination"
    assert document["totals"]["bytes_multifd"] > 0
    assert document["timeline"]["iterations"][0]["number"] == 1
    assert document["qemu"]["version"] == document["destination_qemu"]["version"]
    assert document["downtime"]["seconds"] > 0
    assert err == ""
    qemus.assert_alive()


def test_to_a_file_and_back(qemus: Qemus, tmp_path: Path) -> None:
    saved = tmp_path / "saved"
    out, _ = run(qemus.source, "--to-file", str(saved), expect=0)
    assert f"precopy over file:{saved}: completed" in out
    assert saved.stat().st_size > MIB
    options = ("--leave-paused", "--json")
    out, err = run(qemus.destination, "--from-file", str(saved), *options, expect=0)
    document = json.loads(out)
    assert document["schema"] == {"name": "qemu-ring.restore", "version": 1}
    assert document["channel"] == f"file:{saved}"
    assert document["state"] == "paused"
    assert err == ""
    assert (tmp_path / "source.ram").read_bytes() == (tmp_path / "twin.ram").read_bytes()
    qemus.assert_alive()


def test_from_no_file(qemus: Qemus, tmp_path: Path) -> None:
    _, err = run(qemus.destination, "--from-file", str(tmp_path / "none"), expect=2)
    assert "none cannot be opened: No such file" in err
    assert err.count("\n") == 1
    _, err = run(qemus.source, "--from-file", str(tmp_path / "source.ram"), expect=2)
    assert "it is in state running; start it with -incoming defer" in err
    qemus.assert_alive()


def test_rule_aborts_it(qemus: Qemus) -> None:
    options = ("--max-bandwidth", "1M", "--abort-seconds", "0.3")
    out, err = run(qemus.source, qemus.destination, *options, expect=4)
    assert out == ""
    assert err.count("\n") == 1
    assert "aborted: it took longer than 0.3 s; the guest runs on at the source" in err
    assert qemus.processes[0].poll() is None


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signals_leave_the_guest_at_the_source(
    qemus: Qemus, number: signal.Signals, status: int, tmp_path: Path
) -> None:
    process = start(qemus.source, "--to-file", str(tmp_path / "saved"), "--max-bandwidth", "1M")
    deadline = time.monotonic() + 20
    while not list(tmp_path.glob(".saved.*")):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.005)
    process.send_signal(number)
    out, err = process.communicate(timeout=30)
    assert (process.returncode, out) == (status, "")
    assert err.count("\n") == 1
    assert not list(tmp_path.glob("*saved*"))
    # The source goes on, and can be migrated.
    run(qemus.source, qemus.destination, expect=0)
    qemus.assert_alive()


def test_what_qemu_refuses_is_one_line(qemus: Qemus) -> None:
    out, err = run(qemus.source, qemus.destination, "--dirty-limit", "20M", expect=3)
    assert out == ""
    assert err.count("\n") == 1
    assert "dirty-limit" in err
    swapped = run(qemus.destination, qemus.source, expect=2)
    assert "cannot migrate, it is in state inmigrate; name the running guest first" in swapped[1]
    qemus.assert_alive()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["a"], "name a DESTINATION, --to-file FILE or --from-file FILE"),
        (["a", "b", "--to-file", "c"], "one of them"),
        (["a", "--from-file", "b", "--to-file", "c"], "one of them"),
        (["a", "--from-file", "b", "--kind", "postcopy"], "a channel that goes both ways"),
        (["a", "b", "--channel", "pigeon"], "no such channel: pigeon; use unix"),
        (["a", "b", "--channel", "tcp:host"], "no such channel"),
        (["a", "--to-file", "c", "--channel", "fd"], "leave out --channel"),
        (["a", "--to-file", "c", "--verify"], "--verify needs a destination"),
        (["a", "b", "--compression", "zlib"], "--compression needs --multifd"),
        (["a", "b", "--tls-hostname", "x"], "--tls-hostname needs --tls-dir"),
        (["a", "b", "--preempt"], "--preempt needs --kind postcopy"),
        (["a", "b", "--postcopy-after", "2"], "--postcopy-after needs --kind postcopy"),
        (["a", "b", "--auto-converge", "--dirty-limit", "1M"], "two ways to do one thing"),
        (["a", "b", "--max-bandwidth", "fast"], "'fast' is no size"),
        (["a", "b", "--kind", "cpr-reboot"], "saves to a file"),
        (["a", "b", "--abort-seconds", "-1"], "not greater than 0"),
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
    out, err = run(str(tmp_path / "none"), str(tmp_path / "none"), expect=4)
    assert out == ""
    assert err.count("\n") == 1
    assert "is QEMU running" in err
