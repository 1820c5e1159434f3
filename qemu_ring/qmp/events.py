"""Events that QEMU sends of its own accord, for any number of listeners."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

from qemu_ring._compat import timeout as deadline
from qemu_ring.errors import DeadlineError
from qemu_ring.qmp.clock import PeerClock
from qemu_ring.qmp.errors import DisconnectedError, ProtocolError

__all__ = ["Event", "EventHub", "Listener"]


@dataclass(frozen=True)
class Event:
    """One QMP event.

    Attributes:
        name: such as ``STOP`` or ``MIGRATION``.
        data: the event's own members; empty if it has none.
        seconds: QEMU's host time at which it happened, since the epoch.
        arrived: when it was read here, in seconds of this host's monotonic clock: later than it
            happened by what it took on the way, and here until it was read.
    """

    name: str
    data: dict[str, Any]
    seconds: float
    arrived: float = field(default_factory=time.monotonic, compare=False)

    @classmethod
    def from_message(cls, message: Mapping[str, object]) -> Event:
        """Read an event off the wire.

        Raises:
            ProtocolError: the message does not have an event's form.
        """
        match message.get("event"), message.get("data", {}), message.get("timestamp"):
            case str(name), dict(data), {"seconds": int(whole), "microseconds": int(micro)}:
                return cls(name, data, whole + micro / 1e6)
        raise ProtocolError(f"an event out of form: {repr(message.get('event'))[:80]}")


class Listener:
    """The events of some names, in order, none missed; made by `Monitor.events`.

    It listens within its ``with`` block only, and queues what nobody has taken yet. Iteration
    never ends of itself: when the connection is lost, it first gives all events that had
    arrived, and then raises DisconnectedError. A listener has one reader; for more readers make
    more listeners.
    """

    def __init__(self, hub: EventHub, names: tuple[str, ...]) -> None:
        self._hub = hub
        self._names = frozenset(names)
        self._queue: asyncio.Queue[Event | None] = asyncio.Queue()

    def __enter__(self) -> Listener:
        self._queue = asyncio.Queue()
        self._hub.add(self)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._hub.remove(self)

    def __aiter__(self) -> Listener:
        return self

    async def __anext__(self) -> Event:
        if not self._hub.has(self):
            raise RuntimeError("a Listener was read outside of its with block")
        event = await self._queue.get()
        if event is None:
            self.end()
            raise self._hub.lost()
        return event

    async def wait(
        self,
        predicate: Callable[[Event], bool] = lambda _: True,
        *,
        timeout: float | None = 10.0,
        what: str = "",
    ) -> Event:
        """Wait for the next event that the predicate accepts; those before it are dropped.

        Args:
            predicate: given each event in turn; by default any event does.
            timeout: the deadline, in seconds; None for none.
            what: what is waited for, in words, for the error's message.

        Raises:
            DeadlineError: no such event arrived in time; says what did arrive.
            DisconnectedError: the monitor went away first.
        """
        last: Event | None = None
        clock = deadline(timeout)
        try:
            async with clock:
                while True:
                    last = await anext(self)
                    if predicate(last):
                        return last
        except TimeoutError:
            if not clock.expired():
                raise
        what = what or f"event {' or '.join(sorted(self._names)) or 'of any name'}"
        seen = f"; the last event was {last.name} {last.data}" if last else "; no event came"
        raise DeadlineError(f"{self._hub.name}: no {what} within {timeout:g} s{seen}")

    def taken(self) -> list[Event]:
        """Take all that has come; does not wait, and does not tell of a lost connection."""
        found = []
        while not self._queue.empty():
            event = self._queue.get_nowait()
            if event is None:
                self.end()
                break
            found.append(event)
        return found

    def offer(self, event: Event) -> None:
        """Queue the event if it is one of those listened for."""
        if not self._names or event.name in self._names:
            self._queue.put_nowait(event)

    def end(self) -> None:
        """Mark the end of the queue: the connection is lost."""
        self._queue.put_nowait(None)


class EventHub:
    """Hands one connection's events to its listeners.

    Args:
        name: the connection's, for messages.
        lost: makes the error that tells why the connection is gone.
        clock: learns from each event.
    """

    def __init__(self, name: str, lost: Callable[[], DisconnectedError], clock: PeerClock) -> None:
        self._clock = clock
        self.name = name
        self.lost = lost
        self._listeners: set[Listener] = set()
        self._over = False

    def add(self, listener: Listener) -> None:
        """Begin to deliver; to a connection already lost, deliver just that."""
        if listener in self._listeners:
            raise RuntimeError("a Listener was entered twice")
        self._listeners.add(listener)
        if self._over:
            listener.end()

    def remove(self, listener: Listener) -> None:
        """Stop delivering."""
        self._listeners.discard(listener)

    def has(self, listener: Listener) -> bool:
        """Tell whether the listener is within its with block."""
        return listener in self._listeners

    def dispatch(self, message: Mapping[str, object]) -> bool:
        """Give the event to all who listen for it.

        Returns:
            False, which keeps qemu.qmp's own listener from storing every event for ever.
        """
        event = Event.from_message(message)
        self._clock.heard(event.seconds, event.arrived)
        for listener in self._listeners:
            listener.offer(event)
        return False

    def end(self) -> None:
        """The connection is lost: tell every listener, after the events it still has."""
        self._over = True
        for listener in self._listeners:
            listener.end()
