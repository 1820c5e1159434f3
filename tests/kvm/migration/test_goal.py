"""Migrations to a goal on real QEMUs: guests that converge, that just do, and that never do."""

from __future__ import annotations

import asyncio
import json
import re
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from qemu_ring.dirty import Tracking
from qemu_ring.errors import QemuUnsuitableError
from qemu_ring.migration import (
    Goal,
    GoalAction,
    GoalDecision,
    GoalOutcome,
    GuestAt,
    Migration,
    MigrationAbortedError,
    MigrationPlan,
    MigrationResult,
    Sample,
)
from qemu_ring.qmp import commands
from tests.command import run_command
from tests.kvm.migration.test_precopy import settings

if TYPE_CHECKING:
    from tests.kvm.migration.conftest import Pair, StartPair
    from tests.kvm.migration.qemus import Qemus

# Bandwidths are low, so that a writer that a busy host slows down still dirties faster.
pytestmark = [pytest.mark.kvm, pytest.mark.alternating("binary")]

MIB = 1 << 20
WITHIN = 60.0
# Which of the two depends on how much the host lets the guest write.
HOPELESS = "had no less to send|at this pace it takes"


async def migrate(
    pair: Pair, goal: Goal, bandwidth: int, told: list[GoalDecision] | None = None
) -> tuple[MigrationResult, GoalOutcome]:
    plan = MigrationPlan(goal=goal, max_bandwidth=bandwidth)
    told = [] if told is None else told
    migration = Migration(
        pair.source, pair.destination, plan, verify=pair.blocks, on_decision=told.append
    )
    async with migration:
        result = await migration.complete(timeout=200)
    assert result.goal is not None
    assert list(result.goal.decisions) == told
    assert result.comparison is not None
    assert result.comparison.equal
    await pair.wait_writing_at_destination()
    return result, result.goal


async def test_guest_that_converges(start_pair: StartPair, binary: Path) -> None:
    async with start_pair(binary, pages_per_second=100) as pair:
        before = [await settings(machine) for machine in (pair.source, pair.destination)]
        _, outcome = await migrate(pair, Goal(WITHIN, 1.0, "cancel"), 32 * MIB)
        assert [await settings(one) for one in (pair.source, pair.destination)] == before
    assert outcome.kept
    assert outcome.known_at is None
    assert {one.action for one in outcome.decisions} <= {GoalAction.LIMIT}


async def test_guest_that_just_does(start_pair: StartPair, binary: Path) -> None:
    """It writes 32 MiB again and again, 4 s at this bandwidth: an eighth of the goal's 8 s
    would never do."""
    told: list[GoalDecision] = []
    async with start_pair(binary, pages_per_second=None) as pair:
        result, outcome = await migrate(pair, Goal(WITHIN, 8.0, "cancel"), 8 * MIB, told)
    assert outcome.kept, outcome.reason
    assert [one.action for one in told] == [GoalAction.LIMIT] * len(told)
    assert told
    assert told[-1].figures.downtime_needed is not None
    assert told[-1].downtime_limit > 1.0
    assert told[-1].figures.remaining > 8 * MIB
    assert result.downtime.switchover_seconds is not None
    assert result.as_dict()["goal"] == json.loads(json.dumps(outcome.as_dict()))


async def test_guest_that_never_does_is_given_up_as_soon_as_that_is_known(
    start_pair: StartPair, binary: Path
) -> None:
    async with start_pair(binary, pages_per_second=None) as pair:
        before = await settings(pair.source)
        plan = MigrationPlan(goal=Goal(100, 0.1, "cancel"), max_bandwidth=8 * MIB)
        migration = Migration(pair.source, pair.destination, plan)
        with pytest.raises(MigrationAbortedError, match=HOPELESS):
            async with migration:
                await migration.complete(timeout=200)
        outcome = migration.goal_outcome
        assert outcome is not None
        assert not outcome.kept
        assert re.search(HOPELESS, outcome.reason)
        assert outcome.known_at is not None
        assert outcome.known_at < 95
        last = outcome.decisions[-1]
        assert last.action is GoalAction.CANCEL
        assert last.figures.remaining > 8 * MIB
        assert last.downtime_limit == 0.1
        await pair.assert_source_goes_on()
        assert await settings(pair.source) == before


async def test_zero_pages_make_no_channel_slow(start_pair: StartPair, binary: Path) -> None:
    """A first pass over next to nothing else: QEMU measures hundreds of KiB a second."""
    told: list[GoalDecision] = []
    async with start_pair(binary, pages_per_second=200) as pair:
        _, outcome = await migrate(pair, Goal(WITHIN, 1.0, "postcopy"), 32 * MIB, told)
    assert outcome.kept, outcome.reason
    assert GoalAction.POSTCOPY not in {one.action for one in told}


async def test_guest_that_never_does_by_postcopy(start_pair: StartPair, binary: Path) -> None:
    goal = Goal(WITHIN, 2.0, "postcopy", postcopy_bandwidth=400 * MIB)
    async with start_pair(binary, pages_per_second=None) as pair:
        result, outcome = await migrate(pair, goal, 8 * MIB)
    assert result.switched_to_postcopy
    assert outcome.decisions[-1].action is GoalAction.POSTCOPY
    assert outcome.decisions[-1].seconds < WITHIN
    assert outcome.kept, outcome.reason


async def test_guest_that_never_does_is_slowed_down(start_pair: StartPair, binary: Path) -> None:
    """By auto-converge: the guest has no ring. Even the hundredth of the time that it leaves can
    do for 8 MiB/s; then it is given up, and the guest is let go."""
    samples: list[Sample] = []
    async with start_pair(binary, pages_per_second=None) as pair:
        before = await settings(pair.source)
        plan = MigrationPlan(goal=Goal(150, 2.0), max_bandwidth=8 * MIB)
        migration = Migration(
            pair.source, pair.destination, plan, verify=pair.blocks, on_sample=samples.append
        )
        try:
            async with migration:
                outcome = (await migration.complete(timeout=200)).goal
        except MigrationAbortedError as error:
            assert "the guest cannot be slowed down further" in error.message  # noqa: PT017
            outcome = migration.goal_outcome
            assert max(one.throttle or 0 for one in samples) == 99
            await pair.assert_source_goes_on()
        else:
            assert outcome is not None
            assert outcome.kept, outcome.reason
        assert await settings(pair.source) == before
    assert outcome is not None
    assert outcome.throttle == "auto-converge"
    throttled = [one for one in outcome.decisions if one.action is GoalAction.THROTTLE]
    assert throttled
    held = [one.throttle or 0 for one in samples if one.seconds < throttled[0].seconds]
    assert max(held) <= 1  # it was ready, and did nothing until it was to
    assert max(one.throttle or 0 for one in samples) >= 20


@pytest.mark.ring
async def test_ring_guest_is_slowed_down_by_dirty_limit(
    start_pair: StartPair, patched_qemu: Path
) -> None:
    """What costs its other vCPUs nothing, where the QEMU has it; 7.2 has not."""
    ring = Tracking.parse("ring:1024")
    async with start_pair(patched_qemu, tracking=ring, pages_per_second=None) as pair:
        _, outcome = await migrate(pair, Goal(150, 1.5), 16 * MIB)
    assert outcome.throttle == "dirty-limit"
    [throttled, *_] = [one for one in outcome.decisions if one.action is GoalAction.THROTTLE]
    assert throttled.parameters["vcpu-dirty-limit"] in (7, 8)
    assert outcome.kept, outcome.reason


@pytest.mark.ring
async def test_ring_that_is_more_than_the_downtime_can_send(
    start_pair: StartPair, patched_qemu: Path
) -> None:
    """4 MiB, which a vCPU dirties at once, where 0.2 s are worth 3.2: dirty-limit cannot help."""
    ring = Tracking.parse("ring:1024")
    async with start_pair(patched_qemu, tracking=ring, pages_per_second=100) as pair:
        _, outcome = await migrate(pair, Goal(WITHIN, 0.2), 16 * MIB)
    assert outcome.throttle == "auto-converge"


@pytest.mark.ring
async def test_ring_guest_on_a_qemu_without_dirty_limit(
    start_pair: StartPair, qemu_path: Path
) -> None:
    ring = Tracking.parse("ring:1024")
    async with start_pair(qemu_path, tracking=ring, pages_per_second=100) as pair:
        _, outcome = await migrate(pair, Goal(WITHIN, 1.0), 32 * MIB)
    assert outcome.throttle == "auto-converge"
    assert outcome.kept


async def test_dirty_limit_without_a_ring_is_refused(start_pair: StartPair) -> None:
    async with start_pair() as pair:
        plan = MigrationPlan(goal=Goal(60, then="dirty-limit"))
        with pytest.raises(QemuUnsuitableError, match=r"tracking is bitmap; use auto-converge"):
            async with Migration(pair.source, pair.destination, plan):
                pass
        assert not (await commands.query_migrate(pair.source.monitor)).is_active


async def test_waiting_goes_on_and_the_result_tells_when_it_was_known(
    start_pair: StartPair, binary: Path
) -> None:
    missed, late = asyncio.Event(), asyncio.Event()

    def tell(decision: GoalDecision) -> None:
        if decision.action is GoalAction.MISS:
            missed.set()

    def follow(sample: Sample) -> None:
        if sample.seconds > 7:
            late.set()

    async with start_pair(binary, pages_per_second=None) as pair:
        plan = MigrationPlan(goal=Goal(6.0, 0.1, "wait"), max_bandwidth=8 * MIB)
        migration = Migration(
            pair.source, pair.destination, plan, on_decision=tell, on_sample=follow
        )
        async with migration:
            for event in (missed, late):
                await asyncio.wait_for(event.wait(), 100)
            await migration.set_parameters(max_bandwidth=0, downtime_limit=20)
            result = await migration.complete(timeout=100)
        assert result.outcome.guest_at is GuestAt.DESTINATION
    outcome = result.goal
    assert outcome is not None
    assert not outcome.kept
    assert outcome.reason.startswith(f"it took {result.seconds:.1f} s, 6 s were the goal: ")
    assert outcome.known_at is not None
    assert outcome.known_at < result.seconds


# The command


def test_command_tells_its_decisions(qemus: Qemus) -> None:
    goal = ("--within", "120s", "--downtime", "5s", "--then", "wait", "--max-bandwidth", "50M")
    out, err = run_command("migrate", qemus.source, qemus.destination, *goal, "--json")
    found = json.loads(out)["goal"]
    assert found["goal"] == {
        "within": 120.0,
        "downtime": 5.0,
        "then": "wait",
        "postcopy_bandwidth": None,
    }
    assert found["kept"] is True
    assert len(err.splitlines()) == len(found["decisions"])


def test_command_that_gives_up_tells_why(qemus: Qemus) -> None:
    """The first pass alone takes longer: 40 MiB at 2 MiB/s, as far as they are not zero."""
    goal = ("--within", "1s", "--downtime", "20ms", "--then", "cancel", "--max-bandwidth", "2M")
    out, err = run_command("migrate", qemus.source, qemus.destination, *goal, "--json", expect=4)
    document = json.loads(out)
    assert document["schema"]["name"] == "qemu-ring.migrate"
    assert document["status"] == "cancelled"
    assert document["goal"]["kept"] is False
    assert document["goal"]["known_at"] <= 60
    assert document["goal"]["decisions"][-1]["action"] == "cancel"
    assert ": cancel: it did not converge within 1 s (pass 1" in err
    assert "the migration was aborted: it did not converge within 1 s" in err
    assert "the guest runs on at the source" in err
    assert qemus.processes[0].poll() is None
