"""Random programs on a real QEMU: a lost page is found, shrunk and replayed; the rest holds."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from qemu_ring.errors import ExitStatus, QemuUnsuitableError
from qemu_ring.memslot import FlushPolicy, Shape
from qemu_ring.qmp import DEFAULT_TIMEOUT, set_answer_timeout
from qemu_ring.torture import (
    FindingKind,
    Only,
    Reproducer,
    TortureOptions,
    TortureProgress,
    replay,
    torture,
)
from qemu_ring.torture.model import Features, program_of
from qemu_ring.torture.player import Player, TortureTotals
from qemu_ring.torture.run import prepare
from qemu_ring.torture.steps import (
    Abort,
    Begin,
    Cancel,
    Complete,
    Cycle,
    GuestToggle,
    Kill,
    Limit,
    MeasureRate,
    Migrate,
    MigrationForm,
    Move,
    Pause,
    Plug,
    Policy,
    Program,
    Put,
    Reset,
    Reshape,
    Take,
    Write,
)
from tests.command import run_command, start_command
from tests.waiting import DEADLINE, wait_until

pytestmark = pytest.mark.ring

SEED = 1
REGRESSIONS = sorted((Path(__file__).parents[1] / "regressions").glob("*.json"))
# Each step that every QEMU has, and the guest is found running by each that needs it to.
EVERY: Program = (
    *(Plug(), Write(block="ballast"), Cycle(times=2, pause_ms=1), Move(), MeasureRate(), Pause()),
    *(Begin(), Write(pattern="random"), Take(), Limit(), Put(), Reset(), Complete()),
    *(GuestToggle(), Begin(plan=MigrationForm(channel="unix"), quiet=False), Pause(), Cancel()),
    *(Write(pattern="hot-cold", pages_per_second=None), Begin(), Kill()),
    *(Migrate(plan=MigrationForm(channel="tcp", max_bandwidth=400)), Abort(), Abort(by="cut-sink")),
    *(Abort(by="cancel", after_ms=1), Abort(by="kill"), Begin(), Complete(stopped=False)),
)
OF_PATCHED: Program = (
    *(Write(block="window"), Begin(), Policy(policy=FlushPolicy.READ_ONLY)),
    *(Reshape(shape=shape, times=5, stay=1) for shape in Shape if shape is not Shape.PCI),
    *(Complete(stopped=False), Reshape()),
)


async def played(binary: Path, program: Program) -> TortureTotals:
    """What a program did, of which nothing was found."""
    _, setup = await prepare(binary, TortureOptions())
    totals = TortureTotals()
    found = await Player(setup, totals).play(program)
    assert found is None, found
    return totals


@pytest.mark.alternating("any_qemu")
async def test_each_step_is_done(any_qemu: Path) -> None:
    assert program_of(EVERY, Features()) == EVERY
    totals = await played(any_qemu, EVERY)
    assert not totals.steps["void"]
    assert not totals.refused
    assert sum(totals.migrations.values()) == 3
    assert totals.cancels == 6
    assert totals.removals == 2 * 2 + 2 + 1


async def test_each_step_that_takes_a_patched_qemu_is_done(patched_qemu: Path) -> None:
    totals = await played(patched_qemu, OF_PATCHED)
    assert not totals.steps["void"]
    assert totals.removals > 5 * len(Shape)
    assert totals.entries_dropped == 0


@pytest.mark.full
async def test_unpatched_loses_pages_and_the_steps_that_matter_are_few(
    qemu_path: Path, tmp_path: Path
) -> None:
    shrinking: list[TortureProgress] = []
    options = TortureOptions(seconds=300, seed=SEED, shrink_seconds=60)
    path = tmp_path / "found.json"
    result = await torture(qemu_path, options, output=path, on_progress=shrinking.append)
    assert result.exit_status is ExitStatus.BAD
    assert result.finding is not None
    assert result.finding.kind is FindingKind.STALE
    assert result.finding.stale_pages >= len(result.finding.stale) > 0
    assert result.program is not None
    assert result.reproduced
    assert len(result.program) <= 6
    assert result.removal_bound is None
    assert any(one.shrinking == len(result.program) for one in shrinking)
    assert result.trace is not None
    assert "kvm_set_user_memory" in result.trace.read_text()
    again = Reproducer.load(path)
    assert again.steps == result.program
    replayed = await replay(qemu_path, again)
    assert replayed.finding is not None
    assert replayed.finding.kind is FindingKind.STALE


async def test_default_policy_loses_none(patched_qemu: Path) -> None:
    result = await torture(patched_qemu, TortureOptions(seconds=3, seed=SEED))
    assert result.exit_status is ExitStatus.GOOD, result.finding
    assert result.migrations > 0
    assert result.totals.removals > 0
    assert result.removal_bound == 3 / result.totals.removals
    assert not result.totals.refused


@pytest.mark.parametrize("path", REGRESSIONS, ids=lambda path: path.stem)
async def test_what_was_found_is_found_again_and_mended(
    qemu_path: Path, patched_qemu: Path, path: Path
) -> None:
    reproducer = Reproducer.load(path)
    assert len(reproducer.steps) <= 6
    stock = reproducer.policy is None
    found = await replay(qemu_path if stock else patched_qemu, reproducer)
    assert found.finding is not None
    assert found.finding.kind is reproducer.kind
    mended = await replay(patched_qemu, reproducer, times=2, policy=FlushPolicy.AUTO)
    assert mended.exit_status is ExitStatus.GOOD, mended.finding
    assert mended.plays == 2


@pytest.mark.full
async def test_cancels_forget_nothing(any_qemu: Path) -> None:
    options = TortureOptions(seconds=300, only=Only.CANCELS, cancels=8, seed=SEED)
    result = await torture(any_qemu, options)
    assert result.exit_status is ExitStatus.GOOD, result.finding
    assert result.totals.cancels >= 8
    assert result.cancel_bound == 3 / result.totals.cancels
    assert result.migrations > 0


@pytest.mark.full
@pytest.mark.parametrize("seed", range(3))
async def test_default_policy_loses_none_for_long(patched_qemu: Path, seed: int) -> None:
    result = await torture(patched_qemu, TortureOptions(seconds=60, seed=seed))
    assert result.exit_status is ExitStatus.GOOD, result.finding
    assert result.totals.pages_late > 0  # it was needed: best-effort would have lost these


@pytest.mark.full
async def test_best_effort_loses_pages(patched_qemu: Path, tmp_path: Path) -> None:
    options = TortureOptions(seconds=300, seed=SEED, policy=FlushPolicy.BEST_EFFORT)
    result = await torture(patched_qemu, options, output=tmp_path / "found.json")
    assert result.finding is not None
    assert result.finding.kind is FindingKind.STALE
    assert result.program is not None
    assert len(result.program) <= 6


@pytest.mark.parametrize(
    ("number", "kind", "words"),
    [
        (signal.SIGSEGV, FindingKind.CRASH, "QEMU 1: QEMU ended unasked: killed by SIGSEGV"),
        (signal.SIGSTOP, FindingKind.HANG, "within 1 s"),
    ],
)
async def test_a_qemu_that_ends_or_hangs_is_found(
    patched_qemu: Path,
    quick_timeout: None,
    number: signal.Signals,
    kind: FindingKind,
    words: str,
) -> None:
    _, setup = await prepare(patched_qemu, TortureOptions())
    player = Player(setup, TortureTotals(), lambda: os.kill(player.place.machine.pid or 0, number))
    found = await player.play((Pause(), Write(), Pause()))
    assert found is not None
    assert (found.kind, found.step) == (kind, 1)
    assert words in found.message


async def test_a_vcpu_that_writes_nothing_is_found(
    patched_qemu: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("qemu_ring.torture.player._WAIT_SECONDS", 1.0)
    _, setup = await prepare(patched_qemu, TortureOptions())

    program = (Pause(), Write(pattern="loop", pages_per_second=0.01))
    found = await Player(setup, TortureTotals()).play(program)
    assert found is not None
    assert (found.kind, found.step) == (FindingKind.HANG, 1)
    assert "wrote nothing for 1 s" in found.message


@pytest.fixture
def quick_timeout() -> Iterator[None]:
    """A QEMU that does not answer in a second is called hanging."""
    set_answer_timeout(1.0)
    yield
    set_answer_timeout(DEFAULT_TIMEOUT)


def test_command_and_its_documents(patched_qemu: Path, tmp_path: Path) -> None:
    output = tmp_path / "found.json"
    arguments = ("--seed", "1", "--seconds", "0.1", "--output", str(output), "--json")
    said, _ = run_command("torture", "--only", "cancels", "--qemu", str(patched_qemu), *arguments)
    document = json.loads(said)
    assert document["verdict"] == "clean"
    assert document["finding"] is None
    assert document["programs"] > 0
    assert not output.exists()
    said, _ = run_command(
        *("torture", "replay", "--qemu", str(patched_qemu), "--policy", "quiesce", "--times", "1"),
        *("--log-dir", str(tmp_path), "--json", str(REGRESSIONS[0])),
    )
    assert json.loads(said)["verdict"] == "clean"
    traces = "".join(path.read_text() for path in tmp_path.glob("QEMU *.log"))
    assert "kvm_set_user_memory" in traces


async def test_a_program_that_takes_the_test_device_is_refused(
    qemu_path: Path, tmp_path: Path
) -> None:
    path = tmp_path / "one.json"
    reproducer = Reproducer.load(REGRESSIONS[0])
    reproducer.model_copy(update={"steps": (Begin(), Reshape(), Complete())}).save(path)
    with pytest.raises(QemuUnsuitableError, match="has no reshape; use another QEMU"):
        await replay(qemu_path, Reproducer.load(path))


def test_ended_by_a_signal_it_leaves_nothing(patched_qemu: Path) -> None:
    with start_command("torture", "--qemu", str(patched_qemu), "--seconds", "300") as process:
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
        wait_until(lambda: len(children.read_text().split()) >= 2, "two QEMUs")
        process.send_signal(signal.SIGINT)
        said, errors = process.communicate(timeout=DEADLINE)
    assert (process.returncode, said) == (ExitStatus.INTERRUPTED, "")
    assert "ended by SIGINT; everything started was stopped" in errors
