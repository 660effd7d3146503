"""A folder anywhere: fsspec's file systems behind four calls, with its many errors as one kind."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from typing import Any, TypeVar

from anomalysd_edge.errors import RegistryError, missing_extra

T = TypeVar("T")
PAUSES_S = (0.5, 2.0, 5.0)
"""Before the second, third and fourth try of a read: a radio link that drops is the rule, not the exception."""


def import_fsspec() -> Any:
    """The module. Raises MissingExtra."""
    try:
        import fsspec
    except ModuleNotFoundError as error:
        raise missing_extra("fsspec", "fleet") from error
    return fsspec


class Storage:
    """Files by name below one URL or path. Every method raises RegistryError where it cannot do its work."""

    absent = "check address and name, or push again"
    """What to do about a file that is not there."""

    def __init__(self, url: str, pauses_s: tuple[float, ...] = PAUSES_S, **options: Any) -> None:
        """`options` are the file system's own."""
        self.url = url.rstrip("/")
        self._pauses_s = pauses_s
        fsspec = import_fsspec()
        try:
            self._system, root = fsspec.core.url_to_fs(self.url, **options)
        except (ImportError, ValueError) as error:
            raise RegistryError(f"{url} cannot be opened ({error}); expected a folder or a URL of fsspec") from error
        self._root = root.rstrip("/")

    def read(self, name: str, most: int, **how: Any) -> bytes:
        """The whole file, tried again where the connection broke. One above `most` bytes is refused.

        `how`: further arguments of the file system's open.
        """

        def get() -> bytes:
            with self._system.open(self._path(name), "rb", block_size=0, **how) as file:
                parts: list[bytes] = []
                # A stream may give less than was asked for; only an empty answer is the end.
                while sum(map(len, parts)) <= most and (part := file.read(most + 1)):
                    parts.append(part)
            return b"".join(parts)

        data = self._persistently(name, get)
        if len(data) > most:
            raise RegistryError(f"{self.url}/{name} is longer than {most} bytes, which it should not be: refused")
        return data

    def size(self, name: str) -> int | None:
        """Bytes of a file; None where it is not there."""
        try:
            return int(self._system.size(self._path(name)))
        except FileNotFoundError:
            return None
        except Exception as error:  # each file system has errors of its own
            raise self._failed(name, error) from error

    def write(self, name: str, data: bytes) -> None:
        """Put a file there, under another name first: nobody sees half of it."""
        path = self._path(name)
        aside = f"{path}.{secrets.token_hex(4)}.part"
        try:
            self._system.makedirs(path.rpartition("/")[0], exist_ok=True)
            self._system.pipe_file(aside, data)
            self._system.mv(aside, path)
        except Exception as error:  # as above
            raise self._failed(name, error) from error

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}"

    def _persistently(self, name: str, what: Callable[[], T]) -> T:
        for pause in (*self._pauses_s, None):
            try:
                return what()
            except FileNotFoundError as error:
                raise RegistryError(f"{self.url} has no file {name}; {self.absent}") from error
            except Exception as error:  # as above
                if pause is None:
                    raise self._failed(name, error) from error
            time.sleep(pause)
        raise AssertionError("the last try returns or raises")

    def _failed(self, name: str, error: Exception) -> RegistryError:
        what = " ".join(str(error).split())[:200]
        return RegistryError(f"{self.url}/{name} cannot be reached ({type(error).__name__}: {what}); run again later")
