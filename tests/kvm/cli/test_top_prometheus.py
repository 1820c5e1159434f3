"""`qemu-ring top --prometheus` on real guests, scraped as Prometheus does."""

from __future__ import annotations

import asyncio
import re
import signal
import time
import urllib.request
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families

from qemu_ring.qmp import commands
from tests.kvm.cli.top_guests import TOP, run, running
from tests.unit.observe.test_metrics import lint, value

pytestmark = [pytest.mark.kvm, pytest.mark.ring]

SECONDS = 60.0
Families = dict[str, Metric]


@asynccontextmanager
async def exporter(*sockets: Path) -> AsyncIterator[str]:
    """Running; gives its URL, and ends it."""
    process = await asyncio.create_subprocess_exec(
        *TOP,
        *map(str, sockets),
        *("--prometheus", "127.0.0.1:0", "--interval", "0.2", "--dirty-rate"),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        assert process.stderr is not None
        line = (await asyncio.wait_for(process.stderr.readline(), SECONDS)).decode()
        found = re.fullmatch(r"qemu-ring: metrics are at (http://127\.0\.0\.1:\d+/metrics)\n", line)
        assert found is not None, line
        yield found[1]
        process.send_signal(signal.SIGTERM)
        out, err = await asyncio.wait_for(process.communicate(), SECONDS)
        assert (process.returncode, out) == (143, b""), err
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


def scrape(url: str) -> Families:
    with urllib.request.urlopen(url, timeout=SECONDS) as answer:
        text = answer.read().decode()
    return {one.name: one for one in text_string_to_metric_families(text)}


async def until(url: str, wanted: Callable[[Families], bool]) -> Families:
    deadline = time.monotonic() + SECONDS
    while not wanted(found := await asyncio.to_thread(scrape, url)):
        assert time.monotonic() < deadline, sorted(found)
        await asyncio.sleep(0.1)
    return found


async def test_guests_are_scraped(tmp_path: Path, qemu_path: Path, patched_qemu: Path) -> None:
    patched, plain = tmp_path / "patched.qmp", tmp_path / "plain.qmp"
    async with AsyncExitStack() as stack:
        guest = await stack.enter_async_context(running(patched_qemu, patched))
        await stack.enter_async_context(running(qemu_path, plain))
        async with exporter(patched, plain) as url:
            found = await until(
                url,
                lambda now: (
                    "qemu_ring_dirty_rate_bytes_per_second" in now
                    and len(now["qemu_ring_dirty_rate_bytes_per_second"].samples) == 2
                ),
            )
            assert lint(list(found.values())) == []
            for name in ("patched", "plain"):
                assert value(found, "qemu_ring_guest_up", guest=name) == 1
                assert value(found, "qemu_ring_guest_running", guest=name) == 1
            rings = {"guest": "patched", "vcpu": "0"}
            assert value(found, "qemu_ring_dirty_ring_size_entries", guest="patched") == 4096
            assert value(found, "qemu_ring_dirty_ring_full_exits_total", **rings) >= 0
            assert value(found, "qemu_ring_memslots", guest="patched", address_space="0") > 2
            assert len(found["qemu_ring_dirty_ring_size_entries"].samples) == 1  # plain hides it
            before = value(found, "qemu_ring_memslot_flush_removals_total", guest="patched")
            # The guest saves itself, with dirty logging on, while a slot goes away and comes back.
            monitor = guest.machine.monitor
            await commands.set_parameters(monitor, max_bandwidth=1 << 20)
            await commands.migrate(monitor, "exec:cat > /dev/null")
            await until(url, lambda now: "qemu_ring_migration_status" in now)
            await guest.slots.remove("a")
            await guest.slots.add("a", 1 << 30)
            found = await until(
                url,
                lambda now: (
                    value(now, "qemu_ring_memslot_flush_removals_total", guest="patched") > before
                ),
            )
            assert value(found, "qemu_ring_migration_status", status="active") == 1
            assert value(found, "qemu_ring_migration_remaining_bytes") > 0
            await commands.set_parameters(monitor, max_bandwidth=0, downtime_limit=2000)
            found = await until(
                url,
                lambda now: value(now, "qemu_ring_migration_status", status="completed") == 1,
            )
            assert value(found, "qemu_ring_migration_last_downtime_seconds") < SECONDS


async def test_guest_that_comes_and_goes(tmp_path: Path, qemu_path: Path) -> None:
    at = tmp_path / "guest.qmp"
    async with exporter(at) as url:
        found = await asyncio.to_thread(scrape, url)
        assert value(found, "qemu_ring_guest_up", socket=str(at)) == 0
        async with running(qemu_path, at):
            await until(url, lambda now: value(now, "qemu_ring_guest_up", socket=str(at)) == 1)
        found = await until(url, lambda now: value(now, "qemu_ring_guest_up", socket=str(at)) == 0)
        assert set(found) == {"qemu_ring_guest_up"}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--prometheus", "9469"), "'9469' is no address to listen at"),
        (("--prometheus", ":9469", "--once"), "--prometheus goes on until it is ended"),
        (("--prometheus", "127.0.0.1:1", "--count", "3"), "goes on until it is ended"),
    ],
)
async def test_refused(tmp_path: Path, arguments: tuple[str, ...], words: str) -> None:
    done = await run(tmp_path / "none", *arguments, expect=2)
    assert words in done.stderr
