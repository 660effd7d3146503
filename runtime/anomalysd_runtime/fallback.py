"""NaN and Inf never become a score: the network that gave them goes on in float32, and the results say so."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from anomalysd_edge.core.types import F32
from anomalysd_edge.errors import NumericError
from anomalysd_edge.method.networks import ForwardingNetworks, Networks

LOG = logging.getLogger("anomalysd_runtime")


class FallbackNetworks(ForwardingNetworks):
    """Networks of a lower precision with float32 ones beside them, opened when first needed; a context manager.

    A network that gave NaN or Inf once stays in float32 until close(): what overflowed for one photo is near its limit
    for the next. `fallen` holds the errors by network; `backend`, and with it every result, names these networks.
    NaN from float32 is an error.
    """

    def __init__(self, networks: Networks, float32: Callable[[], Networks]) -> None:
        super().__init__(networks)
        self.fallen: dict[str, str] = {}
        self._open = float32
        self._float32: Networks | None = None
        self._lock = threading.Lock()

    def probe(self) -> None:
        super().probe()
        if self._float32 is not None:
            self._float32.probe()

    def close(self) -> None:
        """Give the memory of both back."""
        super().close()
        if self._float32 is not None:
            self._float32.close()
            self._float32 = None

    def call(self, network: str, job: Callable[[Networks], F32]) -> F32:
        if network not in self.fallen:
            try:
                return job(self.networks)
            except NumericError as error:
                result = job(self._second())  # NumericError again: the photo or the graph itself, so an error
                self.fallen[network] = str(error)
                self.backend_note = f" ({', '.join(sorted(self.fallen))} in float32 after NaN)"
                LOG.warning("%s; the network %r runs in float32 from here on", error, network)
                return result
        return job(self._second())

    def _second(self) -> Networks:
        with self._lock:
            if self._float32 is None:
                self._float32 = self._open()
            return self._float32
