"""What a plan refuses, and what it means in QEMU's terms."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from qemu_ring.errors import UsageError
from qemu_ring.migration import (
    AbortRules,
    AutoConverge,
    BackgroundSnapshot,
    CprReboot,
    DirtyLimit,
    Exec,
    Fd,
    File,
    MappedRam,
    MigrationPlan,
    Multifd,
    PlanError,
    Postcopy,
    Tcp,
    Tls,
    Unix,
    Xbzrle,
)
from qemu_ring.migration.engine.settings import (
    MANAGED_CAPABILITIES,
    destination_settings,
    source_settings,
)

FILE = File(Path("/tmp/x"))
TLS = Tls(Path("/tls"), hostname="ring.test")


def zero_copy(**more: Any) -> MigrationPlan:
    channel = more.pop("channel", Unix())
    return MigrationPlan(channel=channel, multifd=Multifd(2, zero_copy=True), **more)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: MigrationPlan(kind=BackgroundSnapshot()), "BackgroundSnapshot saves to a file"),
        (lambda: MigrationPlan(kind=CprReboot(), channel=Tcp()), "saves to a file"),
        (lambda: MigrationPlan(kind=Postcopy(), channel=FILE), "goes both ways"),
        (lambda: MigrationPlan(mapped_ram=MappedRam()), "to a file only"),
        (lambda: MigrationPlan(multifd=Multifd(), channel=Fd()), "fd is a single connection"),
        (lambda: MigrationPlan(kind=Postcopy(preempt=True)), "fd is a single connection"),
        (lambda: MigrationPlan(multifd=Multifd(), channel=Exec("cat")), "exec:cat is a single"),
        (lambda: MigrationPlan(tls=TLS, channel=FILE), "file:/tmp/x: its handshake needs"),
        (lambda: MigrationPlan(tls=TLS, channel=Exec("cat")), "exec:cat: its handshake needs"),
        (lambda: MigrationPlan(tls=Tls(Path("/tls")), channel=Unix()), "unix needs the name"),
        (lambda: MigrationPlan(tls=Tls(Path("/tls"))), "fd needs the name"),
        (lambda: MigrationPlan(max_bandwidth=-1), "max_bandwidth -1"),
        (lambda: MigrationPlan(max_bandwidth=1), "max_bandwidth 1 would be no limit.*use 10 bytes"),
        (lambda: MigrationPlan(max_bandwidth=9), "max_bandwidth 9 would be no limit"),
        (lambda: Postcopy(max_bandwidth=9), "kind.max_bandwidth 9 would be no limit"),
        (lambda: MigrationPlan(switchover_bandwidth=999), "switchover_bandwidth 999 would be not"),
        (lambda: MigrationPlan(switchover_bandwidth=-1), "switchover_bandwidth -1 is out of range"),
        (lambda: MigrationPlan(downtime_limit=-0.1), "downtime_limit -0.1 is out of range"),
        (lambda: MigrationPlan(downtime_limit=2000.1), "use 0 to 2000"),
        (lambda: MigrationPlan(downtime_limit=0), "downtime_limit 0 s would be no limit"),
        (lambda: MigrationPlan(downtime_limit=0.0009), "downtime_limit 0.0009 s would be no lim"),
        (lambda: Postcopy(after_passes=0), "after_passes 0 is less than 1"),
        (lambda: Multifd(channels=0), "multifd.channels 0 is out of range; use 1 to 255"),
        (lambda: Multifd(channels=256), "multifd.channels 256"),
        (lambda: Multifd(level=3), "needs a compression"),
        (lambda: Multifd(2, "zlib", zero_copy=True), "zero_copy sends pages as they are"),
        (lambda: zero_copy(), "zero_copy needs the channel tcp, and this one is unix; such as tcp"),
        (lambda: zero_copy(channel=Tcp(), xbzrle=Xbzrle()), "as they are: no xbzrle"),
        (lambda: zero_copy(channel=Tcp(), tls=TLS), "they are not encrypted"),
        (lambda: Multifd(compression="zlib", level=10), "level 10 is out of range; use 0 to 9"),
        (lambda: Xbzrle(3 << 20), "xbzrle.cache_size 3145728 is no power of two"),
        (lambda: Xbzrle(2048), "no power of two from 4K on"),
        (lambda: DirtyLimit(vcpu_limit=1000), "whole MiB"),
        (lambda: DirtyLimit(period=0.0001), "throttle.period 0.0001 is out of range"),
        (lambda: AutoConverge(initial=0), "throttle.initial 0"),
        (lambda: AutoConverge(initial=50, maximum=40), "throttle.maximum 40 is out of range; use"),
        (lambda: AutoConverge(trigger_threshold=101), "throttle.trigger_threshold 101"),
        (lambda: AbortRules(seconds=0), "seconds: 0 is not greater"),
        (lambda: AbortRules(iterations=-1), "iterations: -1"),
        (lambda: Tcp(port=1 << 16), "port 65536"),
    ],
)
def test_refused(make: Callable[[], object], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        make()


def test_least_that_is_taken_as_it_is() -> None:
    plan = MigrationPlan(
        kind=Postcopy(max_bandwidth=10),
        max_bandwidth=10,
        downtime_limit=0.001,
        switchover_bandwidth=1000,
    )
    assert source_settings(plan).parameters == {
        "max-bandwidth": 10,
        "downtime-limit": 1,
        "avail-switchover-bandwidth": 1000,
        "max-postcopy-bandwidth": 10,
    }
    nothing = MigrationPlan(max_bandwidth=0, switchover_bandwidth=0)
    assert source_settings(nothing).parameters == {
        "max-bandwidth": 0,
        "avail-switchover-bandwidth": 0,
    }


def test_error_has_the_field_and_takes_another_name_for_it() -> None:
    with pytest.raises(PlanError) as error:
        Xbzrle(5000)
    assert error.value.field == "xbzrle.cache_size"
    renamed = error.value.renamed("--xbzrle")
    assert str(renamed) == "--xbzrle 5000 is no power of two from 4K on; use 64M, say"


def test_plain_plan_sets_what_tells_of_it_and_nothing_else() -> None:
    assert source_settings(MigrationPlan()).capabilities == {"events", "return-path"}
    assert source_settings(MigrationPlan()).parameters == {}
    assert destination_settings(MigrationPlan(channel=FILE)).capabilities == {"events"}


def test_tls_by_what_has_a_host_or_is_told_it() -> None:
    MigrationPlan(tls=Tls(Path("/tls")), channel=Tcp())
    for channel in (Unix(), Fd()):
        MigrationPlan(tls=TLS, channel=channel)


def test_destination_whose_guest_may_go_back_does_not_take_its_disks() -> None:
    plan = MigrationPlan()
    more = destination_settings(plan, held=True).capabilities
    assert more - destination_settings(plan).capabilities == {"late-block-activate"}


def test_each_side_gets_what_is_its_own() -> None:
    plan = MigrationPlan(
        kind=Postcopy(preempt=True, max_bandwidth=70),
        channel=Unix(),
        xbzrle=Xbzrle(1 << 20),
        throttle=AutoConverge(30, 5, 90, 40),
        zero_page="legacy",
        max_bandwidth=1000,
        downtime_limit=0.25,
        switchover_bandwidth=2000,
        switchover_ack=True,
        pause_before_switchover=True,
    )
    source, destination = source_settings(plan), destination_settings(plan)
    both = {"events", "return-path", "postcopy-ram", "postcopy-preempt", "xbzrle", "switchover-ack"}
    assert destination.capabilities == both
    assert destination.parameters == {}
    assert source.capabilities == both | {"auto-converge", "pause-before-switchover"}
    assert source.capabilities <= MANAGED_CAPABILITIES
    assert source.parameters == {
        "max-bandwidth": 1000,
        "downtime-limit": 250,
        "avail-switchover-bandwidth": 2000,
        "max-postcopy-bandwidth": 70,
        "throttle-trigger-threshold": 40,
        "cpu-throttle-initial": 30,
        "cpu-throttle-increment": 5,
        "max-cpu-throttle": 90,
        "xbzrle-cache-size": 1 << 20,
        "zero-page-detection": "legacy",
    }


def test_multifd_dirty_limit_and_files() -> None:
    plan = MigrationPlan(
        channel=Tcp(),
        multifd=Multifd(4, "zstd", 3),
        throttle=DirtyLimit(5 << 20, period=0.5),
    )
    assert destination_settings(plan).parameters == {
        "multifd-channels": 4,
        "multifd-compression": "zstd",
        "multifd-zstd-level": 3,
    }
    assert "dirty-limit" in source_settings(plan).capabilities
    assert source_settings(plan).parameters["vcpu-dirty-limit"] == 5
    assert source_settings(plan).parameters["x-vcpu-dirty-limit-period"] == 500
    mapped = destination_settings(MigrationPlan(channel=FILE, mapped_ram=MappedRam(direct_io=True)))
    assert mapped.capabilities == {"events", "mapped-ram"}
    assert mapped.parameters == {"direct-io": True}
    cpr = source_settings(MigrationPlan(kind=CprReboot(), channel=FILE))
    assert cpr.capabilities == {"events", "x-ignore-shared"}
    assert cpr.parameters == {"mode": "cpr-reboot"}


@pytest.mark.parametrize(
    ("channel", "words"),
    [
        (Unix(), "unix"),
        (Unix(Path("/a/b")), "unix:/a/b"),
        (Tcp(), "tcp:127.0.0.1:0"),
        (Tcp("::1", 7), "tcp:[::1]:7"),
        (Fd(), "fd"),
        (Exec("cat > x"), "exec:cat > x"),
        (FILE, "file:/tmp/x"),
    ],
)
def test_channels_in_words(channel: Unix, words: str) -> None:
    assert channel.words == words
