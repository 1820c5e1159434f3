"""What a guest has written, as far as it tells."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

from qemu_ring.guest.linux import read_reports
from qemu_ring.guestfile import RunningGuest

__all__ = ["GuestWrites"]


@dataclass(frozen=True, slots=True)
class GuestWrites:
    """Pages written since a guest's start, repeats counted.

    Args:
        pages: in all.
        by_vcpu: by each vCPU; None where the guest does not tell.
        by_region: to each region of its workload; None where it does not tell.
    """

    pages: int
    by_vcpu: tuple[int, ...] | None = None
    by_region: dict[str, int] | None = None

    @classmethod
    def of(cls, guest: RunningGuest) -> GuestWrites | None:
        """What a guest tells now; None for one that tells nothing."""
        if guest.control is not None:
            vcpus = guest.control.statistics().vcpus
            by_region: Counter[str] = Counter()
            for vcpu in vcpus:
                by_region.update(vcpu.writes_by_region)
            by_vcpu = tuple(vcpu.writes for vcpu in vcpus)
            return cls(sum(by_vcpu), by_vcpu, dict(by_region))
        reports = read_reports(guest.machine.text("serial"))
        return cls(reports[-1].writes) if reports else None

    def since(self, before: GuestWrites) -> dict[str, Any]:
        """For a run's record: what it has written since it told `before`."""
        found: dict[str, Any] = {"pages_written": self.pages - before.pages}
        if self.by_vcpu is not None and before.by_vcpu is not None:
            pairs = zip(self.by_vcpu, before.by_vcpu, strict=True)
            found["pages_written_by_vcpu"] = [now - then for now, then in pairs]
        if self.by_region is not None and before.by_region is not None:
            found["pages_written_by_region"] = {
                name: pages - before.by_region.get(name, 0)
                for name, pages in self.by_region.items()
            }
        return found
