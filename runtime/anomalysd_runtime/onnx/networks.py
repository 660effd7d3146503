"""The five networks in ONNX Runtime, on the CPU or on an NVIDIA GPU."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from anomalysd_edge.bundle.reader import Bundle
from anomalysd_edge.core.threads import cores
from anomalysd_edge.core.types import F32, I64
from anomalysd_edge.errors import BackendError, BundleError, SettingsError
from anomalysd_edge.method.inpainting.mask_plan import batches
from anomalysd_edge.method.networks import InpaintJob, NetworkSizes
from anomalysd_runtime.onnx.sessions import (
    PROVIDERS,
    check_device,
    check_one_onnxruntime,
    open_session,
    put,
    room,
    run,
    run_bound,
)
from anomalysd_runtime.onnx.step_graph import step_graph
from anomalysd_runtime.static_batches import PIXELS_A_CALL
from anomalysd_runtime.validation import PROMPT_TOKENS, check_array, check_index, check_job, finite

INPUTS: dict[str, tuple[str, ...]] = {
    "unet": ("sample", "timestep", "encoder_hidden_states"),
    "vae_encoder": ("sample",),
    "vae_decoder": ("latent_sample",),
    "perceptual": ("references", "repaints", "reference_of"),
    "features": ("image",),
}
"""The names that every bundle's graphs use."""


class OnnxNetworks:
    """Networks (see anomalysd_edge.networks) from ONNX files; a context manager.

    Results do not depend on `max_batch` beyond float rounding. Methods may be called from several threads: every call
    has its own buffers; on one GPU the calls queue up. close() must not run while another thread is in a call.
    """

    def __init__(
        self,
        files: Mapping[str, Path],
        sizes: NetworkSizes,
        device: str = "cpu",
        threads: int | None = None,
        max_batch: int = 16,
    ) -> None:
        """Open the graphs of `files` (network name -> ONNX file; perceptual and features may be absent).

        `threads`: CPU threads of a pass, by default the cores of this process. `max_batch`: samples in one UNet pass
        (a guided slot is two). Raises BackendError when `device` cannot be had, BundleError for an unusable graph.
        """
        if max_batch < 1 or (threads is not None and threads < 1):
            raise SettingsError(f"max_batch is {max_batch} and threads {threads}, expected at least 1")
        check_one_onnxruntime()
        check_device(device)
        self.sizes = sizes
        self.max_batch = max_batch
        self.backend = f"onnxruntime {PROVIDERS[device]}"
        self._device = device
        self._sessions: dict[str, Any] = {}
        count = threads or cores()
        for name, file in files.items():
            self._sessions[name] = _checked(open_session(file, device, count, name), name, file)
        for name in ("unet", "vae_encoder", "vae_decoder"):
            self._session(name)
        self._prompt_width = int(self._session("unet").get_inputs()[2].shape[2])
        kinds = [(guided, back) for guided in (False, True) for back in (False, True)]
        self._steps = {kind: open_session(step_graph(*kind), device, 1, "step") for kind in kinds}
        self._image_batch = max(1, min(max_batch, PIXELS_A_CALL // sizes.size_px**2))

    @classmethod
    def of_bundle(
        cls,
        bundle: Bundle,
        device: str = "cpu",
        threads: int | None = None,
        max_batch: int = 16,
        precision: str = "fp32",
    ) -> OnnxNetworks:
        """The networks of a bundle that was read, in one of its precisions. Arguments and errors as for the class."""
        files = {name: bundle.network_file(name, precision) for name in bundle.manifest.networks}
        opened = cls(files, bundle.manifest.sizes, device, threads, max_batch)
        if precision != "fp32":
            opened.backend += f" {precision}"
        return opened

    def encode(self, images: F32) -> F32:
        """(N,3,H,W) float32 in [-1,1] -> (N,C,h,w) float32 scaled latents."""
        check_array("images", images, (None, 3, self.sizes.size_px, self.sizes.size_px))
        return self._batched("vae_encoder", len(images), self._image_batch, lambda part: {"sample": images[part]})

    def decode(self, latents: F32) -> F32:
        """(N,C,h,w) float32 scaled latents -> (N,3,H,W) float32 in [-1,1]."""
        side = self.sizes.latent_side
        check_array("latents", latents, (None, self.sizes.latent_channels, side, side))
        return self._batched(
            "vae_decoder", len(latents), self._image_batch, lambda part: {"latent_sample": latents[part]}
        )

    def features(self, images: F32) -> F32:
        """(N,3,F,F) float32 in [-1,1] -> (N,D,f,f) float32, unit length along D."""
        self._session("features")
        check_array("images", images, (None, 3, self.sizes.features_px, self.sizes.features_px))
        batch = max(1, min(self.max_batch, PIXELS_A_CALL // self.sizes.features_px**2))
        return self._batched("features", len(images), batch, lambda part: {"image": images[part]})

    def distance(self, references: F32, repaints: F32, reference_of: I64) -> F32:
        """(M,3,H,W), (N,3,H,W) float32 and (N,) int64 -> (N,H,W) float32.

        A reference's features are computed once in every chunk of repaints that compares with it.
        """
        size = self.sizes.size_px
        check_array("references", references, (None, 3, size, size))
        check_array("repaints", repaints, (None, 3, size, size))
        check_index("reference_of", reference_of, len(references), len(repaints))

        def feeds(part: slice) -> dict[str, Any]:
            used, index = np.unique(reference_of[part], return_inverse=True)
            return {"references": references[used], "repaints": repaints[part], "reference_of": index.astype(np.int64)}

        return self._batched("perceptual", len(repaints), self._image_batch, feeds)

    def inpaint(self, job: InpaintJob) -> F32:
        """Run the loop of `job`: (N,C,h,w) float32 scaled latents at t = 0.

        Guidance as in diffusers: prediction = neg + scale * (pos - neg), both passes in one batch.
        """
        check_job(job, self.sizes, self._prompt_width)
        guided = job.guidance_scale > 1
        chunk = max(1, self.max_batch // 2) if guided else self.max_batch
        result = np.empty_like(job.start_latents)
        for part in batches(len(result), chunk):
            result[part] = self._inpaint_chunk(job, part, guided)
        return finite(result, "unet", self.backend)

    def close(self) -> None:
        """Close the sessions, which gives their memory back; the object cannot be used afterwards."""
        self._sessions.clear()
        self._steps.clear()

    def __enter__(self) -> OnnxNetworks:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _session(self, name: str) -> Any:
        if name not in self._sessions:
            if not self._sessions:
                raise BackendError(f"the network {name!r} was called after close(): open the bundle again")
            raise BundleError(
                f"the network {name!r} is not among those opened ({', '.join(self._sessions)}): export it"
            )
        return self._sessions[name]

    def _batched(self, name: str, n: int, batch: int, feeds: Callable[[slice], dict[str, Any]]) -> F32:
        session = self._session(name)
        parts = []
        for part in batches(n, batch):
            arrays = {key: np.ascontiguousarray(value) for key, value in feeds(part).items()}
            parts.append(run(session, arrays, name))
        return finite(parts[0] if len(parts) == 1 else np.concatenate(parts), name, self.backend)

    def _inpaint_chunk(self, job: InpaintJob, part: slice, guided: bool) -> F32:
        """The loop over one chunk. Buffers live on the device; between UNet passes only two scalars travel there."""
        looks_back = job.history is not None
        unet, step, device = self._session("unet"), self._steps[guided, looks_back], self._device
        start = job.start_latents[part].copy()  # a CPU OrtValue is the array itself, and the loop writes to it
        condition = np.concatenate([job.masks[part], job.masked_latents[part]], axis=1)
        sample = np.concatenate([start, condition], axis=1)
        states = job.prompt_states[job.prompt_of[part]]
        if guided:
            assert job.negative_states is not None  # check_job
            sample = np.concatenate([sample, sample])
            states = np.concatenate([np.broadcast_to(job.negative_states, states.shape), states])
        passes = len(sample)
        latents, following = put(device, start), room(device, start.shape)
        samples, out = put(device, sample), room(device, (passes, *start.shape[1:]))
        fixed = {"encoder_hidden_states": put(device, states)}
        known = {"condition": put(device, condition)}
        if guided:
            known["guidance"] = put(device, np.array([job.guidance_scale], np.float32))
        before, after = (put(device, np.zeros_like(start)), room(device, start.shape)) if looks_back else (None, None)
        for number, (timestep, (c0, c1)) in enumerate(zip(job.timesteps, job.coefficients, strict=True)):
            times = put(device, np.full(passes, timestep, np.int64))
            run_bound(unet, {"sample": samples, "timestep": times, **fixed}, {"out_sample": out}, "unet")
            inputs = {
                "latents": latents,
                "out_sample": out,
                "c0": put(device, c0[None]),
                "c1": put(device, c1[None]),
                **known,
            }
            outputs = {"next_latents": following, "sample": samples}
            if job.history is not None:
                factors = {f"h{i}": put(device, job.history[number, i : i + 1]) for i in range(3)}
                inputs |= {"previous": before, **factors}
                outputs["next_previous"] = after
            run_bound(step, inputs, outputs, "step")
            latents, following = following, latents
            before, after = after, before
        return np.array(latents.numpy())


def _checked(session: Any, name: str, file: Path) -> Any:
    """`session`, if its inputs carry the names that this runtime feeds."""
    if name not in INPUTS:
        raise BundleError(f"{file} is for the network {name!r}, expected one of {', '.join(INPUTS)}")
    found = tuple(entry.name for entry in session.get_inputs())
    if found != INPUTS[name]:
        raise BundleError(f"{file} takes the inputs {found}, expected {INPUTS[name]}: export the bundle again")
    shape = session.get_inputs()[-1].shape
    if name == "unet" and not (len(shape) == 3 and shape[1] == PROMPT_TOKENS and isinstance(shape[2], int)):
        raise BundleError(
            f"{file} takes prompt states {shape}, expected [batch, {PROMPT_TOKENS}, a number]: export again"
        )
    return session
