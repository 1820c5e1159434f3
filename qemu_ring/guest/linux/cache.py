"""Where the kernel and the initramfs are kept."""

from __future__ import annotations

from pathlib import Path

from qemu_ring.cache import CacheDirectory

__all__ = ["linux_cache"]


def linux_cache(cache: Path | None) -> CacheDirectory:
    """The part of the cache for Linux guests; with a lock of its own, so no QEMU build delays it.

    Args:
        cache: qemu-ring's cache directory; None for the user's.
    """
    return CacheDirectory(CacheDirectory(cache).root / "linux")
