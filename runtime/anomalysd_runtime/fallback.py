"""NaN and Inf never become a score: the network that gave them goes on in float32, and everyone is told."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from types import TracebackType

from anomalysd_edge.core.types import F32, I64
from anomalysd_edge.errors import NumericError
from anomalysd_edge.method.networks import InpaintJob, Networks, NetworkSizes

LOG = logging.getLogger("anomalysd_runtime")


class FallbackNetworks:
    """Networks of a lower precision with float32 ones behind them, opened when first needed; a context manager.

    A network that gave NaN or Inf once stays in float32 until close(): what overflowed for one photo is near its limit
    for the next. `fallen` says which; `backend` says it too, and with it every result. NaN from float32 is an error.
    """

    def __init__(self, networks: Networks, float32: Callable[[], Networks]) -> None:
        self.networks = networks
        self.sizes: NetworkSizes = networks.sizes
        self.max_batch = networks.max_batch
        self.batch_sizes: tuple[int, ...] = getattr(networks, "batch_sizes", ())
        self.backend = networks.backend
        self.fallen: dict[str, str] = {}
        self._open = float32
        self._float32: Networks | None = None
        self._lock = threading.Lock()

    def encode(self, images: F32) -> F32:
        return self._call("vae_encoder", lambda networks: networks.encode(images))

    def inpaint(self, job: InpaintJob) -> F32:
        return self._call("unet", lambda networks: networks.inpaint(job))

    def decode(self, latents: F32) -> F32:
        return self._call("vae_decoder", lambda networks: networks.decode(latents))

    def distance(self, references: F32, repaints: F32, reference_of: I64) -> F32:
        return self._call("perceptual", lambda networks: networks.distance(references, repaints, reference_of))

    def features(self, images: F32) -> F32:
        return self._call("features", lambda networks: networks.features(images))

    def close(self) -> None:
        """Give the memory of both back."""
        self.networks.close()
        if self._float32 is not None:
            self._float32.close()
            self._float32 = None

    def __enter__(self) -> FallbackNetworks:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _call(self, name: str, job: Callable[[Networks], F32]) -> F32:
        if name not in self.fallen:
            try:
                return job(self.networks)
            except NumericError as error:
                result = job(self._second())  # NumericError again: the photo or the graph itself, so an error
                self.fallen[name] = str(error)
                self.backend = f"{self.networks.backend} ({', '.join(sorted(self.fallen))} in float32 after NaN)"
                LOG.warning("%s; the network %r runs in float32 from here on", error, name)
                return result
        return job(self._second())

    def _second(self) -> Networks:
        with self._lock:
            if self._float32 is None:
                self._float32 = self._open()
            return self._float32
