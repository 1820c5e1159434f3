"""A QEMU's clock, seen through its monitor."""

from __future__ import annotations

import math

__all__ = ["PeerClock"]


class PeerClock:
    """How the clock by which a QEMU dates its events compares with this host's monotonic one.

    What an event was late when it arrived is never less than the clocks' difference, and no
    answer is later than the whole way to and fro. The least of each that was ever seen counts.

    Attributes:
        least_lag: of an event's arrival here minus its time there, seconds; infinite at first.
        least_round_trip: of a command and its answer, seconds; infinite at first.
    """

    def __init__(self) -> None:
        self.least_lag = math.inf
        self.least_round_trip = math.inf

    def heard(self, there: float, here: float) -> None:
        """Take note of an event: its time there, and of its arrival here."""
        self.least_lag = min(self.least_lag, here - there)

    def answered(self, seconds: float) -> None:
        """Take note of how long an answer took."""
        self.least_round_trip = min(self.least_round_trip, seconds)
