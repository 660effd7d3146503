"""Kernels that TensorRT for RTX compiled for this GPU, in one file beside the engines: else every start compiles all.

The library checks the file itself (its own version, GPU, driver) and leaves out what does not fit, so the worst that an
outdated file does is nothing.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from anomalysd_edge.core.files import write_aside
from anomalysd_edge.errors import BackendError, InputError

LOG = logging.getLogger("anomalysd_runtime")


class KernelCache:
    """One cache for all contexts of a worker. It must outlive them; save() once they ran."""

    def __init__(self, file: Path) -> None:
        """`file` need not exist."""
        self.file = file
        self._cache: Any = None
        self._read = b""

    def attach(self, settings: Any) -> None:
        """Make the contexts of `settings` (IRuntimeConfig) use this cache. Raises BackendError if they refuse it."""
        if self._cache is None:
            self._cache = settings.create_runtime_cache()
            self._load()
        if not settings.set_runtime_cache(self._cache):
            raise BackendError(
                "TensorRT for RTX refused its own cache of compiled kernels: reinstall tensorrt-rtx-cu13"
            )

    def save(self) -> None:
        """Write the file where kernels were compiled that it did not hold. A folder that cannot be written is said."""
        if self._cache is None:
            return
        found = bytes(memoryview(self._cache.serialize()))
        if found == self._read:
            return
        try:
            with write_aside(self.file) as aside:
                aside.write_bytes(found)
        except (InputError, OSError) as error:
            LOG.warning("compiled kernels are not kept, so every start compiles them anew: %s", error)
        else:
            self._read = found

    def _load(self) -> None:
        try:
            found = self.file.read_bytes()
        except FileNotFoundError:
            return
        except OSError as error:
            LOG.warning("%s cannot be read (%s): kernels are compiled anew", self.file, error.strerror or error)
            return
        if self._cache.deserialize(found):
            self._read = found
        else:
            LOG.info("%s is of another GPU, driver or library: kernels are compiled anew", self.file)
