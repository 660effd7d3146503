"""A bounded queue that is fair between clients: a queue per client, served round robin."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable, Hashable, Iterator
from typing import Generic, TypeVar

T = TypeVar("T")


class FairQueue(Generic[T]):
    """Round robin over clients, first in first out within one. Not thread-safe: its owner holds the lock."""

    def __init__(self) -> None:
        self._queues: OrderedDict[Hashable, deque[T]] = OrderedDict()
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[T]:
        return (item for queue in self._queues.values() for item in queue)

    def put(self, client: Hashable, item: T) -> None:
        """Append to the client's queue."""
        self._queues.setdefault(client, deque()).append(item)
        self._count += 1

    def ahead(self, client: Hashable) -> int:
        """How many items come before the next one that `client` would put."""
        own = len(self._queues.get(client, ()))
        return own + sum(min(len(queue), own + 1) for other, queue in self._queues.items() if other != client)

    def take(self, most: int, same: Callable[[T], Hashable]) -> list[T]:
        """Up to `most` items in turn over the clients, all with the `same` value as the first one.

        A client whose next item has another value keeps it, and its place in the round.
        """
        taken: list[T] = []
        wanted: Hashable = None
        found = True
        while found and len(taken) < most:
            found = False
            for client in list(self._queues):
                queue = self._queues[client]
                if len(taken) == most:
                    break
                if taken and same(queue[0]) != wanted:
                    continue  # it stays in front, so the next group begins with it
                wanted = same(queue[0])
                taken.append(queue.popleft())
                self._count -= 1
                found = True
                if queue:
                    self._queues.move_to_end(client)
                else:
                    del self._queues[client]
        return taken

    def remove(self, client: Hashable, item: T) -> bool:
        """Take a waiting item out; False where it is not (no longer) there."""
        queue = self._queues.get(client)
        if queue is None or item not in queue:
            return False
        queue.remove(item)
        self._count -= 1
        if not queue:
            del self._queues[client]
        return True
