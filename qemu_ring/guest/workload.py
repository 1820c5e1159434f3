"""What the workload firmware is told to do: regions, one stream per vCPU, rates."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum
from itertools import pairwise

from qemu_ring.errors import UsageError
from qemu_ring.guest import layout
from qemu_ring.guest.zipf import bucket_table, scatter_multiplier

__all__ = ["Pattern", "Region", "Span", "Stream", "Workload"]

_ZIPF_BUCKETS = 1024
_PCI_COMMAND = 0x80000004
_PCI_FUNCTIONS = 0x00FFFF00
_MAX_REST_SECONDS = 3600.0
_LEAST_RATE = 1e-6
"""Pages a second; the firmware counts the time between two writes in 64 bits of TSC."""


class Pattern(IntEnum):
    """The order in which a vCPU writes pages, or what else it does."""

    IDLE = 0
    """Write nothing."""
    ONCE = 1
    """Walk forward over the span, each page once, then stop."""
    LOOP = 2
    """Walk forward over the span, again and again."""
    RANDOM = 3
    """Any page of the span, evenly."""
    ZIPF = 4
    """A few pages of the span often, most rarely: Zipf's law with exponent `skew`."""
    HOT_COLD = 5
    """Loop over a small hot set, and between walk forward over the span."""
    PCI_TOGGLE = 6
    """Write no page, but turn PCI devices' memory off, one by one, and on again in that order."""

    @property
    def word(self) -> str:
        """Its name in files, such as hot-cold."""
        return self.name.lower().replace("_", "-")

    @property
    def writes(self) -> bool:
        """Whether it writes pages."""
        return self not in (Pattern.IDLE, Pattern.PCI_TOGGLE)


@dataclass(frozen=True, slots=True)
class Region:
    """A range of guest-physical memory to write to.

    Args:
        name: how the region is called in results.
        address: guest-physical start, bytes, a multiple of the page size.
        size: bytes, a multiple of the page size.
    """

    name: str
    address: int
    size: int

    def __post_init__(self) -> None:
        if self.address % layout.PAGE_SIZE or self.size % layout.PAGE_SIZE or self.size <= 0:
            raise UsageError(f"region {self.name}: address and size must be whole pages")
        if self.address < layout.LOW_MEMORY:
            raise UsageError(f"region {self.name}: the firmware itself lives below 1 MiB")
        if self.address + self.size > layout.MAPPED_BYTES:
            raise UsageError(f"region {self.name}: the firmware maps no more than 64 GiB")

    @property
    def pages(self) -> int:
        """Pages in the region."""
        return self.size // layout.PAGE_SIZE


@dataclass(frozen=True, slots=True)
class Span:
    """Pages by index, over all regions of the workload laid end to end."""

    first: int
    pages: int

    def split(self, parts: int) -> list[Span]:
        """The span cut into `parts` neighbouring spans of (nearly) equal length."""
        cuts = [self.first + self.pages * part // parts for part in range(parts + 1)]
        return [Span(low, high - low) for low, high in pairwise(cuts)]


@dataclass(frozen=True, slots=True)
class Stream:
    """What one vCPU does.

    While a vCPU has `Pattern.PCI_TOGGLE`, the configuration ports 0xcf8 and 0xcfc are
    its own: the host must not write them too, as `PciSlots` does. Each cycle writes the
    whole COMMAND register, 0 and then memory-enable, and is counted as a pass. A vCPU
    finishes its cycle before it takes up another stream, so after a change all devices
    are on.

    Args:
        pattern: order of the writes.
        span: pages to write; not needed for a pattern that writes none.
        pages_per_second: rate; None writes as fast as the vCPU can. A vCPU that is
            held up catches up by at most 64 writes.
        seed: for the random patterns; not 0.
        skew: exponent for `Pattern.ZIPF`.
        hot: the hot set for `Pattern.HOT_COLD`.
        hot_run, cold_run: writes to the hot set, then to the span, in turn.
        cold_once: end the walk over the span after one pass; the hot set goes on.
        pci_commands: for `Pattern.PCI_TOGGLE`: 1 to 6 devices, each by its COMMAND
            register as the configuration address port takes it, such as
            `PciAddress(4).register(0x04)`.
        rest_seconds: for `Pattern.PCI_TOGGLE`: time between two cycles, for the other
            vCPUs to run with all devices on.
    """

    pattern: Pattern = Pattern.IDLE
    span: Span = field(default=Span(0, 0))
    pages_per_second: float | None = None
    seed: int = 1
    skew: float = 0.99
    hot: Span = field(default=Span(0, 0))
    hot_run: int = 1
    cold_run: int = 1
    cold_once: bool = False
    pci_commands: tuple[int, ...] = ()
    rest_seconds: float = 0.0

    def __post_init__(self) -> None:
        if self.pattern is Pattern.PCI_TOGGLE:
            self._check_toggle()
        elif self.pci_commands or self.rest_seconds:
            raise UsageError("pci_commands and rest_seconds are for PCI_TOGGLE")
        if not self.pattern.writes:
            return
        if self.span.pages <= 0:
            raise UsageError("a stream that writes needs a span of at least one page")
        if self.pages_per_second is not None and self.pages_per_second < _LEAST_RATE:
            raise UsageError(
                f"pages_per_second must be {_LEAST_RATE:f} or more; use IDLE to write nothing"
            )
        if not 0 < self.seed < 1 << 64:
            raise UsageError("seed must be in 1 to 2**64 - 1")
        if self.pattern is Pattern.ZIPF and self.skew <= 0:
            raise UsageError("skew must be greater than 0; RANDOM is the even distribution")
        if self.pattern is Pattern.HOT_COLD:
            if self.hot.pages <= 0:
                raise UsageError("HOT_COLD needs a hot set of at least one page")
            if min(self.hot_run, self.cold_run) < 0 or self.hot_run + self.cold_run == 0:
                raise UsageError("hot_run and cold_run must be 0 or more, and not both 0")

    def _check_toggle(self) -> None:
        if not 1 <= len(self.pci_commands) <= layout.MAX_PCI_COMMANDS:
            raise UsageError(f"PCI_TOGGLE needs 1 to {layout.MAX_PCI_COMMANDS} devices")
        for register in self.pci_commands:
            if register & ~_PCI_FUNCTIONS != _PCI_COMMAND:
                raise UsageError(
                    f"{register:#x} is no COMMAND register's configuration address",
                    hint="it is 0x80000004 | bus << 16 | device << 11 | function << 8",
                )
        if self.pages_per_second is not None:
            raise UsageError("PCI_TOGGLE writes no pages", hint="rest_seconds slows it down")
        if not 0 <= self.rest_seconds <= _MAX_REST_SECONDS:
            raise UsageError(f"rest_seconds must be in 0 to {_MAX_REST_SECONDS:g}")


@dataclass(frozen=True, slots=True)
class Workload:
    """Regions, and one stream for each vCPU.

    Raises:
        UsageError: too many regions or vCPUs, a stream that leaves the regions, or two
            that want the PCI configuration ports.
    """

    regions: tuple[Region, ...]
    streams: tuple[Stream, ...]

    def __post_init__(self) -> None:
        if not 1 <= len(self.regions) <= layout.MAX_REGIONS:
            raise UsageError(f"a workload has 1 to {layout.MAX_REGIONS} regions")
        if not 1 <= len(self.streams) <= layout.MAX_VCPUS:
            raise UsageError(f"a workload has 1 to {layout.MAX_VCPUS} vCPUs")
        for stream in self.streams:
            for span in (stream.span, stream.hot):
                if span.first < 0 or span.first + span.pages > self.pages:
                    raise UsageError(f"{span} leaves the regions, which have {self.pages} pages")
        if sum(stream.pattern is Pattern.PCI_TOGGLE for stream in self.streams) > 1:
            raise UsageError(
                "only one vCPU may toggle PCI devices: the configuration ports are shared",
                hint="one stream takes several devices",
            )

    @property
    def pages(self) -> int:
        """Pages in all regions."""
        return sum(region.pages for region in self.regions)

    def span(self, region: str, first: int = 0, pages: int | None = None) -> Span:
        """Pages of one region, by its name, as a span of the workload."""
        start = 0
        for candidate in self.regions:
            if candidate.name == region:
                return Span(start + first, candidate.pages - first if pages is None else pages)
            start += candidate.pages
        raise UsageError(f"no region is called {region}")

    def fw_cfg(self, tsc_hz: int) -> dict[str, bytes]:
        """The firmware's parameter files.

        Args:
            tsc_hz: ticks per second of the guest's time stamp counter, for the rates.
        """
        tables: list[int] = []
        parameters = bytearray(layout.STREAM_OFFSET + len(self.streams) * layout.STREAM.size)
        layout.HEADER.pack_into(
            parameters, 0, layout.MAGIC, layout.VERSION, len(self.streams), len(self.regions), 0
        )
        for index, region in enumerate(self.regions):
            offset = layout.REGION_OFFSET + index * layout.REGION.size
            layout.REGION.pack_into(parameters, offset, region.address, region.pages)
        starts: dict[tuple[int, float], int] = {}
        for index, stream in enumerate(self.streams):
            start = 0
            if stream.pattern is Pattern.ZIPF:
                key = (stream.span.pages, stream.skew)
                if key not in starts:
                    starts[key] = len(tables)
                    tables += bucket_table(*key, _ZIPF_BUCKETS)
                start = starts[key]
            record = pack_stream(stream, tsc_hz, table_start=start)
            offset = layout.STREAM_OFFSET + index * layout.STREAM.size
            parameters[offset : offset + layout.STREAM.size] = record
        if len(tables) > layout.MAX_TABLE_ENTRIES:
            raise UsageError(
                "too many different Zipf streams",
                hint="a guest holds tables for 3 pairs of span length and skew",
            )
        files = {layout.PARAMETERS_FILE: bytes(parameters)}
        if tables:
            packed = b"".join(entry.to_bytes(4, "little") for entry in tables)
            files[layout.TABLES_FILE] = packed
        return files


def pack_stream(stream: Stream, tsc_hz: int, *, table_start: int = 0) -> bytes:
    """One stream as the firmware reads it."""
    if stream.pattern is Pattern.PCI_TOGGLE:
        registers = (*stream.pci_commands, *(0,) * layout.MAX_PCI_COMMANDS)
        return layout.PCI_STREAM.pack(
            stream.pattern,
            0,
            round(tsc_hz * stream.rest_seconds),
            len(stream.pci_commands),
            *registers[: layout.MAX_PCI_COMMANDS],
        )
    rate = stream.pages_per_second
    hot_first, hot_count = stream.hot.first, stream.hot.pages
    runs = stream.hot_run | stream.cold_run << 32
    if stream.pattern is Pattern.ZIPF:
        hot_first, hot_count = table_start, _ZIPF_BUCKETS
        runs = scatter_multiplier(stream.span.pages)
    return layout.STREAM.pack(
        stream.pattern,
        layout.FLAG_COLD_ONCE if stream.cold_once else 0,
        0 if rate is None else max(1, round(tsc_hz / rate)),
        stream.seed,
        stream.span.first,
        stream.span.pages,
        hot_first,
        hot_count,
        runs,
    )
