"""The workload firmware: writes guest pages in known patterns, and counts them."""

from qemu_ring.guest.control import (
    VcpuState,
    VcpuStatistics,
    WorkloadControl,
    WorkloadStatistics,
)
from qemu_ring.guest.image import (
    IMAGE_SIZE,
    IMAGES,
    RING0_FIRST,
    RING0_PAGES,
    RING0_PASSES,
    build_image,
    image_bytes,
    source_text,
)
from qemu_ring.guest.layout import LOW_MEMORY, MAX_VCPUS, PAGE_SIZE
from qemu_ring.guest.tokens import pages_changed, read_tokens
from qemu_ring.guest.workload import Pattern, Region, Span, Stream, Workload

__all__ = [
    "IMAGES",
    "IMAGE_SIZE",
    "LOW_MEMORY",
    "MAX_VCPUS",
    "PAGE_SIZE",
    "RING0_FIRST",
    "RING0_PAGES",
    "RING0_PASSES",
    "Pattern",
    "Region",
    "Span",
    "Stream",
    "VcpuState",
    "VcpuStatistics",
    "Workload",
    "WorkloadControl",
    "WorkloadStatistics",
    "build_image",
    "image_bytes",
    "pages_changed",
    "read_tokens",
    "source_text",
]
