"""A QEMU's clock, seen through its monitor."""

from __future__ import annotations

import math

__all__ = ["PeerClock"]


class PeerClock:
    """How the clock by which a QEMU dates its events compares with this host's monotonic one.

    An event arrives after it has happened, and one that a command has caused has happened after
    that was sent. So the difference of the clocks lies between the two attributes.

    Attributes:
        most: the least that an event's arrival here was ahead of its time there, seconds;
            infinite at first.
        least: the most that a command's sending here was ahead of the time there of what it
            caused, seconds; minus infinite at first.
    """

    def __init__(self) -> None:
        self.most = math.inf
        self.least = -math.inf

    def heard(self, there: float, here: float) -> None:
        """Take note of an event: its time there, and of its arrival here."""
        self.most = min(self.most, here - there)

    def caused(self, sent: float, there: float) -> None:
        """Take note of an event's time there, and of when its cause was sent from here."""
        self.least = max(self.least, sent - there)
