"""Saving to a command of ours, and restoring from one, and what becomes of those that fail."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from qemu_ring.errors import DeadlineError, UsageError
from qemu_ring.machine import Machine
from qemu_ring.migration import (
    BackgroundSnapshot,
    Command,
    Fd,
    GuestAt,
    Migration,
    MigrationCancelledError,
    MigrationError,
    MigrationPlan,
    restore,
)
from qemu_ring.qmp import MigrationStatus, commands
from tests.command import run_command, start_command
from tests.kvm.migration.conftest import StartPair
from tests.kvm.migration.qemus import Qemus
from tests.processes import Process, find_processes
from tests.waiting import DEADLINE, wait_until

pytestmark = [pytest.mark.kvm, pytest.mark.alternating("binary")]

MIB = 1 << 20

migrate = partial(run_command, "migrate")
start = partial(start_command, "migrate")
LONG = 200.0
NAP = f"sleep 600.{os.getpid():07}"
"""Of these tests, and of no others that run beside them."""


@pytest.fixture(params=["distribution", "patched"])
def binary(request: pytest.FixtureRequest, qemu_path: Path) -> Path:
    if request.param == "distribution":
        return qemu_path
    found: Path = request.getfixturevalue("patched_qemu")
    return found


@pytest.fixture
def qemus(binary: Path, tmp_path: Path) -> Iterator[Qemus]:
    """Two QEMUs that are not ours."""
    started = Qemus(tmp_path, binary)
    yield started
    started.stop()


def running(mark: str) -> list[int]:
    """Processes with these words in their command line, but for those that ask."""

    def matches(process: Process) -> bool:
        words = process.command
        return mark in words and "qemu_ring.cli.main" not in words and process.state != "Z"

    return [one.pid for one in find_processes(matches)]


def runs_at_source(qemus: Qemus) -> bool:
    """Whether the source's guest writes."""
    counts = Path(qemus.source).with_name("source.ram").read_bytes()
    wait_until(
        lambda: Path(qemus.source).with_name("source.ram").read_bytes() != counts,
        "the guest writes at the source",
    )
    return True


def size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


@pytest.mark.parametrize(
    ("to", "back"), [("gzip -1c > {}", "gzip -dc {}"), ("zstd -qo {}", "zstd -dqc {} | cat")]
)
def test_there_and_back(qemus: Qemus, tmp_path: Path, to: str, back: str) -> None:
    saved = tmp_path / "saved with a space"
    quoted = f"'{saved}'"
    out, err = migrate(qemus.source, "--to-command", to.format(quoted))
    assert f"precopy over command:{to.format(quoted)}: completed" in out
    assert err == ""
    assert 0 < saved.stat().st_size < 40 * MIB
    options = ("--leave-paused", "--json")
    out, err = migrate(qemus.destination, "--from-command", back.format(quoted), *options, expect=0)
    document = json.loads(out)
    assert document["schema"] == {"name": "qemu-ring.restore", "version": 1}
    assert document["state"] == "paused"
    assert document["channel"] == f"command:{back.format(quoted)}"
    assert err == ""
    assert (tmp_path / "source.ram").read_bytes() == (tmp_path / "twin.ram").read_bytes()
    assert running(str(saved)) == []
    qemus.assert_alive()


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("cat > {}/none/saved", "status 2: /bin/sh: 1: cannot create"),
        ("nosuchprogram", "status 127: /bin/sh: 1: nosuchprogram: not found"),
        ("cat > /dev/null; echo disk quota >&2; exit 3", "status 3: disk quota"),
        ("kill -9 $$", "status 137 (SIGKILL)"),
        ("head -c 100000 > /dev/null", "status 0: it wrote nothing"),
        ("exec <&-; {nap}", ""),
    ],
)
def test_guest_that_is_not_saved_goes_on(
    qemus: Qemus, tmp_path: Path, command: str, words: str
) -> None:
    text = command.format(tmp_path, nap=NAP)
    out, err = migrate(qemus.source, "--to-command", text, expect=4)
    assert out == ""
    assert err.count("\n") == 1
    assert words in err
    assert "the guest runs on at the source" in err or "the guest runs at the source" in err
    assert runs_at_source(qemus)
    assert running(NAP) == []
    # It can be migrated all the same.
    migrate(qemus.source, qemus.destination)
    qemus.assert_alive()


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("true", "status 0: it wrote nothing, and gave no saved guest"),
        ("nosuchprogram", "status 127: /bin/sh: 1: nosuchprogram: not found, and gave no saved"),
        ("printf QE", "status 0: it wrote nothing, and gave no saved guest"),
        ("echo something else", "gives no saved guest"),
        ("exec >&-; {nap}", "has closed its output"),
    ],
)
def test_what_gives_no_guest_uses_no_qemu_up(
    qemus: Qemus, tmp_path: Path, command: str, words: str
) -> None:
    out, err = migrate(qemus.destination, "--from-command", command.format(nap=NAP), expect=4)
    assert out == ""
    assert err.count("\n") == 1
    assert words in err
    assert "the QEMU that waits was not touched" in err
    assert running(NAP) == []
    saved = tmp_path / "saved"
    migrate(qemus.source, "--to-command", f"cat > {saved}")
    migrate(qemus.destination, "--from-command", f"cat {saved}")
    qemus.assert_alive()


def test_part_of_a_guest(qemus: Qemus, tmp_path: Path) -> None:
    saved = tmp_path / "saved"
    migrate(qemus.source, "--to-command", f"cat > {saved}")
    command = f"head -c 300000 {saved}; echo lost the rest >&2; exit 9"
    _, err = migrate(qemus.destination, "--from-command", command, expect=4)
    assert "was not restored" in err
    assert "status 9: lost the rest" in err
    assert err.count("\n") == 1


def test_what_a_command_finds_wrong_last(qemus: Qemus, tmp_path: Path) -> None:
    """Such as a checksum: the guest is there then, and may be damaged."""
    saved = tmp_path / "saved"
    migrate(qemus.source, "--to-command", f"cat > {saved}")
    command = f"cat {saved}; echo checksum mismatch >&2; exit 1"
    _, err = migrate(qemus.destination, "--from-command", command, expect=4)
    assert "the guest was restored, but the command" in err
    assert "status 1: checksum mismatch: what it gave may be damaged" in err


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGKILL, -9)]
)
def test_no_command_outlives_us(
    qemus: Qemus, tmp_path: Path, number: signal.Signals, status: int
) -> None:
    """Nor does it take what is cut off for what is whole."""
    part, whole = tmp_path / "part", tmp_path / "whole"
    command = f"cat | cat > {part} && mv {part} {whole}"
    process = start(qemus.source, "--to-command", command, "--max-bandwidth", "1M")

    def has_begun() -> bool:
        assert process.poll() is None, process.communicate()
        return size(part) > 0

    wait_until(has_begun, "it saves")
    process.send_signal(number)
    process.communicate(timeout=DEADLINE)
    assert process.returncode == status
    wait_until(lambda: running(str(part)) == [], "the command has ended")
    assert runs_at_source(qemus)
    assert not whole.exists()
    migrate(qemus.source, qemus.destination)
    qemus.assert_alive()


def test_interrupted_while_the_command_has_yet_to_end(qemus: Qemus, tmp_path: Path) -> None:
    """QEMU has sent all by then, and stopped the guest."""
    mark = tmp_path / "mark"
    process = start(qemus.source, "--to-command", f"cat > /dev/null; touch {mark}; {NAP}")
    wait_until(mark.exists, "all was read")
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=DEADLINE)
    assert process.returncode == 130, err
    assert runs_at_source(qemus)
    assert running(str(mark)) == []
    migrate(qemus.source, qemus.destination)


def test_killed_while_it_restores(qemus: Qemus, tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    process = start(qemus.destination, "--from-command", f"touch {mark}; {NAP} | cat")
    wait_until(mark.exists, "it has begun")
    process.kill()
    process.communicate(timeout=DEADLINE)
    wait_until(lambda: running(str(mark)) == [], "the command has ended")
    saved = tmp_path / "saved"
    migrate(qemus.source, "--to-command", f"cat > {saved}")
    migrate(qemus.destination, "--from-command", f"cat {saved}")
    qemus.assert_alive()


def test_monitor_that_takes_no_descriptors(qemus: Qemus) -> None:
    host, port = qemus.by_tcp["source"]
    _, err = migrate(f"{host}:{port}", "--to-command", "cat > /dev/null", expect=2)
    assert "its monitor is no unix socket; use a monitor on a unix socket" in err
    assert runs_at_source(qemus)


# As a library


async def test_snapshot_while_the_guest_runs(
    start_pair: StartPair, binary: Path, tmp_path: Path
) -> None:
    saved = tmp_path / "saved"
    async with start_pair(binary) as pair:
        plan = MigrationPlan(kind=BackgroundSnapshot(), channel=Command(f"cat > {saved}"))
        async with Migration(pair.source, None, plan) as migration:
            result = await migration.complete(timeout=LONG)
        assert result.channel == f"command:cat > {saved}"
        await pair.assert_source_goes_on()
        back = MigrationPlan(channel=Command(f"cat {saved}"))
        assert await restore(pair.destination, back, timeout=LONG) > 0
        await pair.wait_writing_at_destination()


async def test_cancelled_though_nobody_reads(start_pair: StartPair, binary: Path) -> None:
    async with start_pair(binary) as pair:
        plan = MigrationPlan(channel=Command(NAP))
        async with Migration(pair.source, None, plan) as migration:
            with pytest.raises(DeadlineError):
                await migration.complete(timeout=0.3)
            outcome = await migration.cancel()
            assert outcome.guest_at is GuestAt.SOURCE
            with pytest.raises(MigrationCancelledError):
                await migration.complete(timeout=LONG)
        await pair.assert_source_goes_on()
    assert running(NAP) == []


async def test_cancelled_while_the_command_has_yet_to_end(
    start_pair: StartPair, binary: Path
) -> None:
    """QEMU cannot cancel it any more; the guest has been saved nowhere, and goes on."""
    async with start_pair(binary) as pair:
        plan = MigrationPlan(channel=Command(f"cat > /dev/null; {NAP}"))
        async with Migration(pair.source, None, plan) as migration:
            async for _ in migration.iterations():
                pass
            assert migration.status is MigrationStatus.COMPLETED
            outcome = await migration.cancel()
            assert outcome.guest_at is GuestAt.SOURCE
            with pytest.raises(MigrationCancelledError):
                await migration.complete(timeout=LONG)
        await pair.assert_source_goes_on()
    assert running(NAP) == []


async def test_deadline_while_the_command_has_yet_to_end(
    start_pair: StartPair, binary: Path, tmp_path: Path
) -> None:
    go = tmp_path / "go"
    command = f"cat > /dev/null; while ! test -e {go}; do sleep 0.05; done"
    async with start_pair(binary) as pair:
        async with Migration(
            pair.source, None, MigrationPlan(channel=Command(command))
        ) as migration:
            with pytest.raises(DeadlineError, match="has not ended"):
                await migration.complete(timeout=5)
            go.touch()
            result = await migration.complete(timeout=LONG)
        assert result.status == "completed"
        assert (await commands.query_status(pair.source.monitor)).status == "postmigrate"


async def test_guest_that_was_paused_stays_so(start_pair: StartPair, binary: Path) -> None:
    async with start_pair(binary) as pair:
        await commands.stop(pair.source.monitor)
        plan = MigrationPlan(channel=Command("cat > /dev/null; exit 1"))
        with pytest.raises(MigrationError, match="the guest was not saved: the command"):
            async with Migration(pair.source, None, plan) as migration:
                await migration.complete(timeout=LONG)
        assert not (await commands.query_status(pair.source.monitor)).running


async def test_waits_no_longer_than_it_may(start_pair: StartPair, binary: Path) -> None:
    async with start_pair(binary) as pair:
        plan = MigrationPlan(channel=Command(NAP))
        with pytest.raises(DeadlineError, match="gave no saved guest within"):
            await restore(pair.destination, plan, timeout=0.2)
        await _can_be_migrated_to(pair.source, pair.destination)


async def test_connects_no_two_qemus(start_pair: StartPair, binary: Path) -> None:
    async with start_pair(binary) as pair:
        with pytest.raises(UsageError, match="it cannot connect two QEMUs; use fd"):
            async with Migration(
                pair.source, pair.destination, MigrationPlan(channel=Command("cat"))
            ):
                pass
        await _can_be_migrated_to(pair.source, pair.destination)


async def _can_be_migrated_to(source: Machine, destination: Machine) -> None:
    async with Migration(source, destination, MigrationPlan(channel=Fd())) as migration:
        result = await migration.complete(timeout=LONG)
    assert result.outcome.guest_at is GuestAt.DESTINATION
