"""A bounded queue that is fair between clients: each client has a line of its own, and the lines take turns."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable, Hashable, Iterator
from typing import Generic, TypeVar

T = TypeVar("T")


class FairQueue(Generic[T]):
    """Round robin over clients, first in first out within one. Not thread-safe: its owner holds the lock."""

    def __init__(self) -> None:
        self._lines: OrderedDict[Hashable, deque[T]] = OrderedDict()
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[T]:
        return (item for line in self._lines.values() for item in line)

    def put(self, client: Hashable, item: T) -> None:
        """Append to the client's line."""
        self._lines.setdefault(client, deque()).append(item)
        self._count += 1

    def ahead(self, client: Hashable) -> int:
        """How many items come before the next one that `client` would put."""
        own = len(self._lines.get(client, ()))
        return own + sum(min(len(line), own + 1) for other, line in self._lines.items() if other != client)

    def take(self, most: int, same: Callable[[T], Hashable]) -> list[T]:
        """Up to `most` items in turn over the clients, all with the `same` value as the first one.

        A client whose next item has another value keeps it, and its place in the round.
        """
        taken: list[T] = []
        wanted: Hashable = None
        found = True
        while found and len(taken) < most:
            found = False
            for client in list(self._lines):
                line = self._lines[client]
                if len(taken) == most:
                    break
                if taken and same(line[0]) != wanted:
                    continue  # it stays in front, so the next group begins with it
                wanted = same(line[0])
                taken.append(line.popleft())
                self._count -= 1
                found = True
                if line:
                    self._lines.move_to_end(client)
                else:
                    del self._lines[client]
        return taken

    def remove(self, client: Hashable, item: T) -> bool:
        """Take a waiting item out; False where it is not (no longer) there."""
        line = self._lines.get(client)
        if line is None or item not in line:
            return False
        line.remove(item)
        self._count -= 1
        if not line:
            del self._lines[client]
        return True
