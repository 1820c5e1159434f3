"""One run: a guest and its twin started, the guest migrated, its memory compared."""

from __future__ import annotations

import asyncio
import copy
import math
import time
import traceback
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

from qemu_ring._compat import timeout as deadline
from qemu_ring.errors import HostError, QemuRingError, QemuUnsuitableError, UsageError
from qemu_ring.experiment.plan.cells import run_seed
from qemu_ring.experiment.plan.migrations import clear_chunk_arguments, migration_plan
from qemu_ring.experiment.plan.schema import CellPart
from qemu_ring.experiment.results.record import Status
from qemu_ring.experiment.run.draft import (
    empty_record,
    migration_record,
    partial_record,
    sample_record,
    stale_record,
)
from qemu_ring.experiment.run.guest_writes import GuestWrites
from qemu_ring.experiment.run.provenance import command_lines, images, provenance
from qemu_ring.experiment.run.removals import Removals
from qemu_ring.guest import Pattern
from qemu_ring.guestfile import GuestDescription, RunningGuest, start_guests
from qemu_ring.guestfile.interpretation import memory_sizes
from qemu_ring.machine import find_qemu, probe_host, require_memory, require_space
from qemu_ring.memslot import query_flush, query_rings
from qemu_ring.migration import (
    GoalOutcome,
    GuestDowntime,
    Iteration,
    Migration,
    MigrationAbortedError,
    MigrationError,
    MigrationResult,
    Sample,
)

__all__ = ["Measurement"]

_OVERHEAD = 64 << 20
"""A QEMU's own memory, about."""
_SAMPLE_SECONDS = 0.1
_LEAST_WRITES = 10


class Measurement:
    """One run of a cell; `record` is there from the start, and filled in as the run gets on.

    Args:
        specification: the cell's.
        binary: the QEMU where the cell names none; None for `find_qemu`'s.
        seed: of the workload.
    """

    def __init__(
        self, specification: Mapping[str, Any], binary: Path | None = None, *, seed: int = 1
    ) -> None:
        data = dict(specification)
        directory = Path(data.pop("directory", "."))
        guest = _seeded(data.pop("guest"), seed)
        self._part = CellPart.model_validate(data)
        chunk = self._part.migration.clear_chunk
        if chunk is not None:  # QEMU takes it at its start only
            guest["extra"] = [*guest.get("extra", []), *clear_chunk_arguments(chunk)]
        self._guest = GuestDescription.model_validate(guest, context=directory)
        self._binary = self._part.qemu or binary
        self._iterations: list[Iteration] = []
        self._samples: list[dict[str, Any]] = []
        self._ring_fill: int | None = None
        self._started = 0.0
        self.record = empty_record(Status.CRASHED, "it did not come to an end")
        self.record["block_pages"] = {
            name: size // 4096 for name, size in memory_sizes(self._guest).items()
        }

    async def run(self) -> None:
        """Do it, and record what became of it. When cancelled, it is recorded as a timeout."""
        try:
            await self._run()
        except asyncio.CancelledError:
            self._end(Status.TIMEOUT, f"not over within {self._part.time_limit:g} s")
        except (UsageError, HostError, QemuUnsuitableError) as error:
            self._end(Status.REFUSED, str(error))
        except QemuRingError as error:
            self._end(Status.CRASHED, str(error))
        except Exception as error:  # noqa: BLE001 - a mistake of ours; what was measured is kept
            self._end(Status.CRASHED, _in_words(error))
        if self.record["migration"] is None:
            self.record["migration"] = partial_record(self._iterations, self._samples)

    def _end(self, status: Status, error: str | None = None) -> None:
        self.record["status"], self.record["error"] = status.value, error

    async def _run(self) -> None:
        binary = self._binary or find_qemu()
        self.record["provenance"] = await provenance(binary)
        self._require_memory()
        async with start_guests(self._guest, binary) as (source, destination):
            self.record["provenance"] |= {
                "command_lines": command_lines([source.machine, destination.machine]),
                "images": await asyncio.to_thread(images, source.machine),
            }
            await source.wait_up()
            await _settle(source, self._part.settle_seconds)
            try:
                result = await self._migrate(source, destination)
            except MigrationAbortedError as error:
                # Not let out: a destination that ended because of it would be blamed.
                self._end(Status.NOT_CONVERGED, str(error))
                return
            finally:
                await self._ask_patched(source)
        self._judge(result)

    def _require_memory(self) -> None:
        """Both guests at once: their memory is sparse, so each for itself seems to fit."""
        total = sum(memory_sizes(self._guest).values())
        what = f"a guest of {total >> 20} MiB and the one it is migrated to"
        require_memory(2 * (total + _OVERHEAD), probe_host(), what)
        if self._guest.memory_directory is not None:
            require_space(self._guest.memory_directory, 2 * total)

    async def _migrate(self, source: RunningGuest, destination: RunningGuest) -> MigrationResult:
        blocks = source.memory_with(destination)
        before, self._started = GuestWrites.of(source), time.monotonic()
        removals, seconds = self._removals(source), math.inf
        migration = Migration(
            source.machine,
            destination.machine,
            migration_plan(self._part),
            verify=blocks if self._part.verify else (),
            guest_downtime=None if self._part.verify else GuestDowntime.of(source, destination),
            sample_seconds=_SAMPLE_SECONDS,
            on_sample=self._sample,
        )
        try:
            async with AsyncExitStack() as stack:
                await stack.enter_async_context(migration)
                await stack.enter_async_context(self._watching_rings(source))
                async with nullcontext() if removals is None else removals.going():
                    async for iteration in migration.iterations():
                        self._iterations.append(iteration)
                        if removals is not None:
                            removals.passed(iteration.number)
                # What follows the last pass is the switchover, or the end.
                result = await migration.complete(timeout=self._part.time_limit)
                seconds = result.seconds
                self._note_goal(result.goal)
                return result
        except MigrationError:
            self._note_goal(migration.goal_outcome)
            raise
        finally:
            after = GuestWrites.of(source)
            if after is not None and before is not None:
                self.record |= after.since(before)
            if removals is not None:
                self.record["removals"] = removals.records(self._started, seconds)

    def _note_goal(self, outcome: GoalOutcome | None) -> None:
        self.record["goal"] = None if outcome is None else outcome.as_dict()

    def _removals(self, source: RunningGuest) -> Removals | None:
        if self._part.removals is None:
            return None
        assert source.slots is not None  # checked when the experiment was read
        return Removals(
            self._part.removals, source.slots, [slot.name for slot in self._guest.slots]
        )

    def _sample(self, sample: Sample) -> None:
        self._started = time.monotonic() - sample.seconds  # it was taken right now
        self._samples.append(sample_record(sample, self._ring_fill))

    @asynccontextmanager
    async def _watching_rings(self, source: RunningGuest) -> AsyncIterator[None]:
        """Keep the fullest ring's fill up to date, where QEMU tells it."""
        tracking = self._guest.tracking
        told = (await source.machine.monitor.schema()).has_command("x-query-dirty-rings")
        if not told or tracking is None or not tracking.is_ring:
            yield
            return

        async def look() -> None:
            with suppress(QemuRingError):  # the migration itself tells of a QEMU that is gone
                while True:
                    rings = (await query_rings(source.machine.monitor)).rings
                    self._ring_fill = max((ring.fill for ring in rings), default=0)
                    await asyncio.sleep(_SAMPLE_SECONDS)

        task = asyncio.create_task(look(), name="ring fill")
        try:
            yield
        finally:
            task.cancel()
            await asyncio.wait({task})

    async def _ask_patched(self, source: RunningGuest) -> None:
        """A patched QEMU's own counters; without an answer there are none."""
        monitor = source.machine.monitor
        with suppress(QemuRingError):
            schema = await monitor.schema()
            if self._guest.accelerator != "kvm" or not schema.has_command("x-query-dirty-rings"):
                return
            flush = await query_flush(monitor)
            self.record["flush"] = flush.model_dump(mode="json")
            rings = await query_rings(monitor)
            self.record["rings"] = [ring.model_dump(mode="json") for ring in rings.rings]

    def _judge(self, result: MigrationResult) -> None:
        comparison = result.comparison
        self.record["migration"] = migration_record(
            result,
            self._samples,
            verified=comparison is not None,
            pages_written=self.record["pages_written"],
        )
        if comparison is not None:
            self.record |= stale_record(comparison)
            if comparison.pages_stale_total:
                pages = comparison.pages_stale_total
                self._end(Status.STALE, f"{pages} stale pages at the destination")
                return
        wrote = self.record["pages_written"]
        if wrote == 0 and self._least_writes(result.seconds) >= _LEAST_WRITES:
            self._end(Status.CRASHED, "the guest wrote nothing while it was migrated")
            return
        self._end(Status.OK)

    def _least_writes(self, seconds: float) -> float:
        """Pages that the vCPUs were to write in that time, as far as that is known."""
        streams = self._guest.workload.streams if self._guest.workload else []
        steady = (Pattern.LOOP, Pattern.RANDOM, Pattern.ZIPF)
        rates = [one.pages_per_second or 1e4 for one in streams if one.pattern in steady]
        return sum(rates) * seconds


def _in_words(error: Exception) -> str:
    """An exception that nobody expected: what, and where it came from."""
    last = traceback.extract_tb(error.__traceback__)[-1]
    words = " ".join(f"{type(error).__name__}: {error}".split())
    return f"{words} ({Path(last.filename).name}:{last.lineno})"


def _seeded(guest: Mapping[str, Any], seed: int) -> dict[str, Any]:
    """The guest with a seed for each stream that has none of its own."""
    seeded = copy.deepcopy(dict(guest))
    streams = (seeded.get("workload") or {}).get("streams") or []
    for index, stream in enumerate(streams):
        stream.setdefault("seed", run_seed(seed, index))
    return seeded


async def _settle(source: RunningGuest, seconds: float) -> None:
    """Let the guest write for so long.

    Raises:
        MachineError: its QEMU ended meanwhile.
    """
    with suppress(TimeoutError):
        async with deadline(seconds):
            await source.machine.monitor.wait_disconnected()
            raise await source.machine.explain(QemuRingError("the guest ended"))
