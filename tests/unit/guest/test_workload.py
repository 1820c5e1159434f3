"""Parameters as the firmware reads them, and what is refused."""

from __future__ import annotations

import struct
from collections.abc import Callable
from itertools import pairwise

import pytest

from qemu_ring.errors import UsageError
from qemu_ring.guest import Pattern, Region, Span, Stream, Workload
from qemu_ring.guest.zipf import bucket_table, scatter_multiplier

MIB = 1 << 20
TSC_HZ = 2_000_000_000
COMMAND = 0x80002004


def two_regions(*streams: Stream) -> Workload:
    regions = (Region("low", 16 * MIB, MIB), Region("high", 1 << 30, 2 * MIB))
    return Workload(regions, streams or (Stream(),))


def toggle(rest_seconds: float = 0.0, pages_per_second: float | None = None) -> Stream:
    return Stream(
        Pattern.PCI_TOGGLE,
        pages_per_second=pages_per_second,
        pci_commands=(COMMAND,),
        rest_seconds=rest_seconds,
    )


def test_parameters_match_the_layout_in_workload_s() -> None:
    stream = Stream(Pattern.ONCE, Span(256, 512), pages_per_second=1000, seed=7)
    files = two_regions(Stream(), stream).fw_cfg(TSC_HZ)
    assert list(files) == ["opt/qemu-ring/parameters"]
    parameters = files["opt/qemu-ring/parameters"]
    assert parameters[:4] == b"QRWL"
    assert struct.unpack_from("<4I", parameters, 4) == (1, 2, 2, 0)
    assert struct.unpack_from("<4Q", parameters, 0x40) == (16 * MIB, 256, 1 << 30, 512)
    assert len(parameters) == 0x100 + 2 * 64
    assert struct.unpack_from("<I", parameters, 0x100) == (0,)
    assert struct.unpack_from("<IIQQQQ", parameters, 0x140) == (1, 0, 2_000_000, 7, 256, 512)


def test_hot_cold_runs_and_flag() -> None:
    w = two_regions()
    stream = Stream(
        Pattern.HOT_COLD, w.span("high"), hot=w.span("low"), hot_run=3, cold_run=5, cold_once=True
    )
    parameters = two_regions(stream).fw_cfg(TSC_HZ)["opt/qemu-ring/parameters"]
    assert struct.unpack_from("<II", parameters, 0x100) == (5, 1)
    assert struct.unpack_from("<QQQQII", parameters, 0x118) == (256, 512, 0, 256, 3, 5)


def test_pci_toggle_gives_the_devices_in_order() -> None:
    stream = Stream(Pattern.PCI_TOGGLE, pci_commands=(0x80002004, 0x80FF3904), rest_seconds=0.0005)
    parameters = two_regions(Stream(), stream).fw_cfg(TSC_HZ)["opt/qemu-ring/parameters"]
    assert len(parameters) == 0x100 + 2 * 64
    assert struct.unpack_from("<IIQ", parameters, 0x140) == (6, 0, 1_000_000)
    assert struct.unpack_from("<Q6I", parameters, 0x160) == (2, 0x80002004, 0x80FF3904, 0, 0, 0, 0)


def test_span_is_named_by_region_and_splits_without_a_gap() -> None:
    w = two_regions()
    assert w.span("low") == Span(0, 256)
    assert w.span("high", 2, 10) == Span(258, 10)
    parts = Span(5, 10).split(3)
    assert [part.pages for part in parts] == [3, 3, 4]
    assert [part.first for part in parts] == [5, 8, 11]


def test_zipf_tables_are_shared_by_like_streams() -> None:
    low, high = two_regions().span("low"), two_regions().span("high")
    like = (Stream(Pattern.ZIPF, low), Stream(Pattern.ZIPF, low, seed=2))
    files = two_regions(*like, Stream(Pattern.ZIPF, high)).fw_cfg(TSC_HZ)
    assert len(files["opt/qemu-ring/tables"]) == 2 * 1025 * 4
    starts = [
        struct.unpack_from("<Q", files["opt/qemu-ring/parameters"], 0x100 + 64 * i + 40)[0]
        for i in range(3)
    ]
    assert starts == [0, 0, 1025]


def test_too_many_zipf_tables_are_refused() -> None:
    streams = [Stream(Pattern.ZIPF, Span(0, 100 + i)) for i in range(4)]
    with pytest.raises(UsageError, match="too many different Zipf"):
        two_regions(*streams).fw_cfg(TSC_HZ)


@pytest.mark.parametrize("pages", [1, 2, 1000, 65_536, 1_000_000])
@pytest.mark.parametrize("skew", [0.5, 0.99, 1.0, 2.0])
def test_zipf_buckets_follow_the_law(pages: int, skew: float) -> None:
    table = bucket_table(pages, skew, 1024)
    assert len(table) == 1025
    assert table[0] == 0
    assert table[-1] == pages
    assert all(low <= high for low, high in pairwise(table))
    # The share of draws that falls below rank r, against the exact law.
    weights = [(rank + 1) ** -skew for rank in range(pages)]
    total = sum(weights)
    for bucket in (256, 512, 768):
        exact = sum(weights[: table[bucket]]) / total
        above = sum(weights[: table[bucket] + 1]) / total
        assert exact - 0.01 <= bucket / 1024 <= above + 0.01


@pytest.mark.parametrize("pages", [1, 2, 3, 10, 4096, 9973, 65_536])
def test_scattering_is_a_permutation(pages: int) -> None:
    multiplier = scatter_multiplier(pages)
    assert sorted(rank * multiplier % pages for rank in range(pages)) == list(range(pages))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Region("r", 123, MIB), "whole pages"),
        (lambda: Region("r", 16 * MIB, 0), "whole pages"),
        (lambda: Region("r", 0x2000, 0x1000), "below 1 MiB"),
        (lambda: Region("r", 63 << 30, 2 << 30), "64 GiB"),
        (lambda: Stream(Pattern.LOOP), "span"),
        (lambda: Stream(Pattern.LOOP, Span(0, 1), pages_per_second=0), "pages_per_second"),
        (lambda: Stream(Pattern.RANDOM, Span(0, 1), seed=0), "seed"),
        (lambda: Stream(Pattern.ZIPF, Span(0, 1), skew=0), "skew"),
        (lambda: Stream(Pattern.HOT_COLD, Span(0, 1)), "hot set"),
        (
            lambda: Stream(Pattern.HOT_COLD, Span(0, 1), hot=Span(0, 1), hot_run=0, cold_run=0),
            "not both 0",
        ),
        (lambda: Stream(Pattern.PCI_TOGGLE), "1 to 6 devices"),
        (lambda: Stream(Pattern.PCI_TOGGLE, pci_commands=(COMMAND,) * 7), "1 to 6 devices"),
        (lambda: Stream(Pattern.PCI_TOGGLE, pci_commands=(0x2004,)), "no COMMAND register"),
        (lambda: Stream(Pattern.PCI_TOGGLE, pci_commands=(COMMAND + 4,)), "no COMMAND register"),
        (lambda: toggle(pages_per_second=100), "rest_seconds slows it down"),
        (lambda: toggle(rest_seconds=-1), "rest_seconds must be in 0 to 3600"),
        (lambda: toggle(rest_seconds=float("nan")), "rest_seconds must be in 0 to 3600"),
        (lambda: Stream(Pattern.LOOP, Span(0, 1), rest_seconds=1), "are for PCI_TOGGLE"),
        (lambda: Stream(pci_commands=(COMMAND,)), "are for PCI_TOGGLE"),
        (lambda: two_regions(toggle(), toggle()), "only one vCPU may toggle"),
        (lambda: two_regions(Stream(Pattern.LOOP, Span(700, 100))), "leaves the regions"),
        (lambda: two_regions(*[Stream()] * 33), "32 vCPUs"),
        (lambda: Workload((), (Stream(),)), "1 to 8 regions"),
        (lambda: two_regions().span("middle"), "middle"),
    ],
)
def test_refused(make: Callable[[], object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        make()
