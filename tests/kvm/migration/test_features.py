"""What precopy can be combined with: each really used, and memory equal after it."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from qemu_ring.dirty import Tracking
from qemu_ring.errors import QemuRingError, QemuUnsuitableError
from qemu_ring.guest import read_tokens
from qemu_ring.migration import (
    AutoConverge,
    BackgroundSnapshot,
    DirtyLimit,
    Exec,
    File,
    MappedRam,
    Migration,
    MigrationError,
    MigrationPlan,
    MigrationResult,
    Multifd,
    Tcp,
    Tls,
    Unix,
    Xbzrle,
    restore,
)
from qemu_ring.qmp import commands
from qemu_ring.verify import compare
from tests.kvm.migration.refusals import may_be_refused
from tests.kvm.migration.test_precopy import settings
from tests.waiting import DEADLINE

if TYPE_CHECKING:
    from tests.kvm.migration.conftest import Pair, StartPair

pytestmark = [pytest.mark.kvm, pytest.mark.alternating("binary")]

MIB = 1 << 20


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


async def migrate(pair: Pair, plan: MigrationPlan) -> MigrationResult:
    """Migrate and compare."""
    async with Migration(pair.source, pair.destination, plan, verify=pair.blocks) as migration:
        result = await migration.complete(timeout=60)
    assert result.comparison is not None
    assert result.comparison.equal
    await pair.wait_writing_at_destination()
    return result


@pytest.mark.parametrize("compression", ["none", "zlib", "zstd"])
@pytest.mark.parametrize("channel", [Unix(), Tcp()], ids=["unix", "tcp"])
@may_be_refused
async def test_multifd(start_pair: StartPair, binary: Path, channel: Tcp, compression: str) -> None:
    multifd = Multifd(3, compression)  # type: ignore[arg-type]
    async with start_pair(binary) as pair:
        plan = MigrationPlan(channel=channel, multifd=multifd, downtime_limit=200)
        result = await migrate(pair, plan)
    assert result.totals.bytes_multifd > 100_000  # zero pages and tokens compress well


async def test_compressed_pages_need_to_be_told_the_bandwidth(
    start_pair: StartPair, patched_qemu: Path
) -> None:
    """These compress so well that QEMU would never take what is left for little."""
    plan = MigrationPlan(channel=Tcp(), multifd=Multifd(2, "zlib"), switchover_bandwidth=500 * MIB)
    async with start_pair(patched_qemu, vcpus=4, pages_per_second=1000) as pair:
        await migrate(pair, plan)


@may_be_refused
async def test_xbzrle(start_pair: StartPair, binary: Path) -> None:
    plan = MigrationPlan(xbzrle=Xbzrle(64 * MIB), max_bandwidth=24 * MIB, downtime_limit=0.05)
    async with start_pair(binary, pages_per_second=4000) as pair:
        result = await migrate(pair, plan)
    assert result.totals.pages_xbzrle > 0


@pytest.mark.parametrize("zero_page", ["none", "legacy", "multifd"])
@may_be_refused
async def test_zero_page_modes(start_pair: StartPair, binary: Path, zero_page: str) -> None:
    plan = MigrationPlan(
        channel=Tcp(),
        multifd=Multifd() if zero_page == "multifd" else None,
        zero_page=zero_page,  # type: ignore[arg-type]
    )
    async with start_pair(binary) as pair:
        result = await migrate(pair, plan)
    assert (result.totals.pages_zero == 0) == (zero_page == "none")


@may_be_refused
async def test_auto_converge(start_pair: StartPair, binary: Path) -> None:
    """The guest would never converge; throttled it does."""
    throttle = AutoConverge(initial=80, increment=19, trigger_threshold=1)
    plan = MigrationPlan(throttle=throttle, max_bandwidth=40 * MIB, downtime_limit=0.3)
    async with start_pair(binary, pages_per_second=None) as pair:
        result = await migrate(pair, plan)
    assert max(sample.throttle or 0 for sample in result.timeline.samples) >= 80


@pytest.mark.ring
@may_be_refused
async def test_dirty_limit(start_pair: StartPair, binary: Path) -> None:
    # What it lets through between two fills of the ring is far below this, so no vCPU is held
    # for seconds, which would hold the switchover, too.
    throttle = DirtyLimit(20 * MIB, period=0.2, trigger_threshold=1)
    plan = MigrationPlan(throttle=throttle, max_bandwidth=100 * MIB, downtime_limit=0.15)
    async with start_pair(binary, tracking=Tracking(1024), pages_per_second=None) as pair:
        result = await migrate(pair, plan)
    assert any(sample.throttle_seconds for sample in result.timeline.samples)
    assert any(sample.ring_full_seconds for sample in result.timeline.samples)


@may_be_refused
async def test_switchover_ack(start_pair: StartPair, binary: Path) -> None:
    async with start_pair(binary) as pair:
        await migrate(pair, MigrationPlan(switchover_ack=True))


@may_be_refused
async def test_exec(start_pair: StartPair, binary: Path, tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    async with start_pair(binary) as pair:
        await migrate(pair, MigrationPlan(channel=Exec(f"cat > {fifo}", f"cat {fifo}")))


async def test_zero_copy(start_pair: StartPair, binary: Path) -> None:
    plan = MigrationPlan(channel=Tcp(), multifd=Multifd(2, zero_copy=True))
    async with start_pair(binary) as pair:
        before = [await settings(machine) for machine in (pair.source, pair.destination)]
        result = await migrate(pair, plan)
        assert result.totals.bytes_multifd > 0
        assert result.totals.zero_copy_missed  # on loopback pages are copied in the end
        assert [await settings(one) for one in (pair.source, pair.destination)] == before


# To a file


@pytest.mark.parametrize(
    "make",
    [
        lambda path: MigrationPlan(channel=File(path)),
        lambda path: MigrationPlan(channel=File(path), mapped_ram=MappedRam()),
        lambda path: MigrationPlan(
            channel=File(path), mapped_ram=MappedRam(), multifd=Multifd(channels=3)
        ),
        lambda path: MigrationPlan(channel=Exec(f"gzip -1 > {path}", f"zcat {path}")),
    ],
    ids=["stream", "mapped-ram", "mapped-ram+multifd", "exec"],
)
@may_be_refused
async def test_to_a_file_and_back(
    start_pair: StartPair, binary: Path, tmp_path: Path, make: Callable[[Path], MigrationPlan]
) -> None:
    path = tmp_path / "saved"
    plan = make(path)
    async with start_pair(binary) as pair:
        async with Migration(pair.source, None, plan) as migration:
            result = await migration.complete(timeout=60)
        assert result.outcome.source == "postmigrate"
        assert names(tmp_path) == ["saved"]
        await commands.stop(pair.destination.monitor)
        paused = MigrationPlan(
            channel=plan.channel,
            mapped_ram=plan.mapped_ram,
            multifd=plan.multifd,
            leave_paused=True,
        )
        assert await restore(pair.destination, paused) > 0
        assert (await compare(pair.blocks)).equal
        await commands.cont(pair.destination.monitor)
        await pair.wait_writing_at_destination()


@may_be_refused
async def test_a_cancelled_save_leaves_no_file(
    start_pair: StartPair, binary: Path, tmp_path: Path
) -> None:
    plan = MigrationPlan(channel=File(tmp_path / "saved"), max_bandwidth=MIB)
    async with start_pair(binary) as pair:
        async with Migration(pair.source, None, plan):
            assert len(names(tmp_path)) == 1
        assert (await commands.query_status(pair.source.monitor)).running
    assert names(tmp_path) == []


async def test_no_way_to_save_there(start_pair: StartPair, binary: Path) -> None:
    async with start_pair(binary) as pair:
        with pytest.raises(QemuRingError, match="cannot be written"):
            async with Migration(
                pair.source, None, MigrationPlan(channel=File(Path("/no/such/saved")))
            ):
                pass
        with pytest.raises(QemuRingError, match="cannot be opened"):
            await restore(pair.destination, MigrationPlan(channel=File(Path("/no/such"))))


async def test_restore_of_what_is_no_guest(
    start_pair: StartPair, binary: Path, tmp_path: Path
) -> None:
    path = tmp_path / "saved"
    path.write_bytes(b"not a guest" * 1000)
    async with start_pair(binary) as pair:
        with pytest.raises(MigrationError, match="was not restored"):
            await restore(pair.destination, MigrationPlan(channel=File(path)), timeout=DEADLINE)


@may_be_refused
@pytest.mark.busy_guest
async def test_background_snapshot_is_of_one_moment(
    start_pair: StartPair, binary: Path, tmp_path: Path
) -> None:
    """The guest walks on meanwhile; no page in the snapshot is newer than its own counter."""
    plan = MigrationPlan(
        kind=BackgroundSnapshot(), channel=File(tmp_path / "saved"), max_bandwidth=20 * MIB
    )
    async with start_pair(binary, pages_per_second=20_000) as pair:
        before = pair.control.statistics().writes
        tokens = read_tokens(pair.memory.fd, pair.memory.size)
        async with Migration(pair.source, None, plan) as migration:
            await migration.complete(timeout=60)
        assert (await commands.query_status(pair.source.monitor)).running
        after = pair.control.statistics().writes
        await commands.stop(pair.destination.monitor)
        await restore(pair.destination, MigrationPlan(channel=plan.channel, leave_paused=True))
        twin = pair.destination_memory
        arrived = read_tokens(twin.fd, twin.size)
        assert all(now >= then for then, now in zip(tokens, arrived, strict=True) if then)
        assert pair.newest_token_at_destination() <= pair.writes_at_destination()
        # On a busy host the guest may not come to many writes.
        walked_on = min(1000, (after - before) // 4)
        assert before <= pair.writes_at_destination() <= after - walked_on < after
        await commands.cont(pair.destination.monitor)
        await pair.wait_writing_at_destination()


# TLS


@pytest.mark.parametrize("multifd", [None, Multifd()], ids=["one", "multifd"])
@may_be_refused
async def test_tls(
    start_pair: StartPair, binary: Path, certificates: Path, multifd: Multifd | None
) -> None:
    plan = MigrationPlan(
        channel=Tcp(), tls=Tls(certificates, hostname="ring.test"), multifd=multifd
    )
    async with start_pair(binary) as pair:
        await migrate(pair, plan)


async def test_patched_qemu_is_built_with_tls_and_zstd(
    start_pair: StartPair, patched_qemu: Path, certificates: Path
) -> None:
    """Here nothing may be refused."""
    tls, multifd = Tls(certificates, hostname="ring.test"), Multifd(2, "zstd")
    plan = MigrationPlan(channel=Tcp(), tls=tls, multifd=multifd, downtime_limit=200)
    async with start_pair(patched_qemu) as pair:
        await migrate(pair, plan)


@may_be_refused
async def test_tls_to_a_name_that_is_not_the_servers(
    start_pair: StartPair, binary: Path, certificates: Path
) -> None:
    plan = MigrationPlan(channel=Tcp(), tls=Tls(certificates, hostname="other.test"))
    async with start_pair(binary) as pair:
        with pytest.raises(MigrationError, match="runs on at the source"):
            async with Migration(pair.source, pair.destination, plan) as migration:
                await migration.complete(timeout=DEADLINE)


@may_be_refused
async def test_tls_without_certificates(
    start_pair: StartPair, binary: Path, tmp_path: Path
) -> None:
    plan = MigrationPlan(channel=Tcp(), tls=Tls(tmp_path, hostname="ring.test"))
    async with start_pair(binary) as pair:
        with pytest.raises(QemuUnsuitableError, match="the source cannot do TLS: "):
            async with Migration(pair.source, pair.destination, plan):
                pass
        await migrate(pair, MigrationPlan())
