"""ONNX Runtime sessions on the asked-for device, or a clear error: never quietly on another one."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import onnxruntime as ort

from anomalysd_edge.core.types import Array
from anomalysd_edge.errors import BackendError, BundleError, MissingExtra
from anomalysd_runtime.onnx.fused_attention import fuse_attention
from anomalysd_runtime.onnx.providers import (
    ON_CUDA,
    PROVIDERS,
    TENSORRT_BUILDS,
    EngineHints,
    add_provider,
    load_cuda_libraries,
)
from anomalysd_runtime.onnx.step_graph import step_graph

LOG = logging.getLogger("anomalysd_runtime")
T = TypeVar("T")
NO_HINTS = EngineHints()


@cache
def _share_arena() -> None:
    """Register the CPU arena that sessions share, once a process."""
    memory = ort.OrtMemoryInfo("Cpu", ort.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, ort.OrtMemType.DEFAULT)
    # (no limit, grow by what is asked, the defaults for the rest)
    ort.create_and_register_allocator(memory, ort.OrtArenaCfg(0, 1, -1, -1))


def trouble(device: str) -> str | None:
    """Why `device` runs nothing here, by a graph of a few nodes that it has to run; None where it does."""
    try:
        probe(open_session(step_graph(False), device, 1, "step"), device)
    except (BackendError, BundleError, MissingExtra) as error:
        return str(error)
    return None


def probe(step: Any, device: str) -> None:
    """Run a step of one number on `device`. `step`: a session of step_graph(False). Raises BackendError."""
    one = to_device(device, np.ones((1, 1, 1, 1), np.float32))
    feeds = dict.fromkeys(("latents", "out_sample", "condition"), one)
    feeds |= {name: to_device(device, np.ones(1, np.float32)) for name in ("c0", "c1")}
    outputs = {"next_latents": empty_on(device, (1, 1, 1, 1)), "sample": empty_on(device, (1, 2, 1, 1))}
    run_bound(step, feeds, outputs, "step")
    if float(outputs["next_latents"].numpy().item()) != 2.0:
        raise BackendError(f"{PROVIDERS[device]} computed 1*1 + 1*1 wrong: look at the device and its driver")


def open_session(
    model: Path | bytes,
    device: str,
    threads: int,
    name: str,
    hints: EngineHints = NO_HINTS,
    fuse: bool | None = None,
) -> Any:
    """An onnxruntime.InferenceSession on `device`. Raises BackendError or BundleError.

    `fuse`: attention as one operator (fused_attention.py); None = on CUDA, where it saves the most memory.
    Memory: ONNX Runtime keeps an arena, sized by the largest batch seen, since every photo brings the same batches. It
    grows by what is asked, not in powers of two. On the CPU all sessions of the process share one, as their networks
    run in turn: with one each, a process takes a third more.
    """
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    # Five sessions have five thread pools: threads that kept spinning after a run would slow the next network down.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    if device == "cpu":
        _share_arena()
        options.add_session_config_entry("session.use_env_allocators", "1")
        # Weights stay outside, so that a closed bundle gives theirs back.
        options.add_session_config_entry("session.use_device_allocator_for_initializers", "1")
    source: str | bytes = model if isinstance(model, bytes) else str(model)
    if isinstance(model, bytes):
        # The step graph: rounding must be that of its own nodes, in their order.
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    elif (device == "cuda") if fuse is None else fuse:
        source = _fused(model, name, options)
    providers = add_provider(options, device, name, hints)
    try:
        with warnings.catch_warnings():  # a provider that did not start is an error below
            warnings.simplefilter("ignore", UserWarning)
            session = ort.InferenceSession(source, sess_options=options, providers=providers or None)
    except Exception as error:  # onnxruntime's classes share no base of their own
        if device in TENSORRT_BUILDS and hints.shapes:
            LOG.warning(
                "%s cannot build %r for all shapes at once (%s); it builds as they come, and the first photos wait",
                PROVIDERS[device], name, str(error).splitlines()[0],
            )  # fmt: skip
            return open_session(model, device, threads, name, EngineHints(hints.cache, hints.types), fuse)
        where = "built in" if isinstance(model, bytes) else str(model)
        raise BundleError(
            f"onnxruntime {ort.__version__} cannot open the network {name!r} ({where}): "
            f"{str(error).splitlines()[0]}; copy or export the bundle again, or update onnxruntime"
        ) from error
    running = session.get_providers()
    if PROVIDERS[device] not in running:
        said = load_cuda_libraries(tensorrt=device == "ort-tensorrt").strip().splitlines() if device in ON_CUDA else []
        raise BackendError(
            f"{PROVIDERS[device]} was asked for and onnxruntime started {', '.join(running)} instead, as it does when "
            f"its libraries do not load{f' ({said[0]})' if said else ''}: pip install "
            f"'anomalysd-edge[{'gpu' if device == 'cuda' else device}]', or ask for the CPU"
        )
    return session


def _fused(model: Path, name: str, options: Any) -> str | bytes:
    data, count = fuse_attention(model.read_bytes())
    if not count:
        return str(model)
    LOG.debug("%d attentions of %r run as one operator each", count, name)
    # A graph in memory has no folder of its own; its weights, where they lie in a file beside it, are looked for here.
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(model.parent))
    return data


def to_device(device: str, array: Any) -> Any:
    """A numpy array as an OrtValue on `device`."""
    return ort.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(array), _place(device), 0)


def empty_on(device: str, shape: tuple[int, ...]) -> Any:
    """An unfilled float32 OrtValue on `device`."""
    return ort.OrtValue.ortvalue_from_shape_and_type(list(shape), np.float32, _place(device), 0)


def _place(device: str) -> str:
    """Where tensors of a device live."""
    return "cuda" if device in ON_CUDA else "cpu"


@dataclass(frozen=True)
class Rows:
    """Rows of numbers on a device, that runs are bound to one at a time: a loop's timesteps, say, go up once."""

    values: Any
    """OrtValue (rows, width); the rows begin ALIGNMENT bytes apart."""
    width: int
    """Numbers a row that count."""
    dtype: Any

    def bind(self, binding: Any, name: str, number: int, device: str) -> None:
        """Row `number` as the input `name` of a run."""
        stride = int(self.values.shape()[1]) * np.dtype(self.dtype).itemsize
        address = self.values.data_ptr() + number * stride
        binding.bind_input(name, _place(device), 0, self.dtype, [self.width], address)


ALIGNMENT = 256
"""Bytes between two rows at least, as CUDA's own allocations are aligned."""


def rows_on(device: str, array: Array) -> Rows:
    """(rows, width) numbers as Rows on `device`."""
    each = ALIGNMENT // array.dtype.itemsize
    padded = np.zeros((len(array), -(-array.shape[1] // each) * each), array.dtype)
    padded[:, : array.shape[1]] = array
    return Rows(to_device(device, padded), array.shape[1], array.dtype.type)


def run(session: Any, feeds: Mapping[str, Any], name: str) -> Any:
    """The first output, a numpy array, for numpy inputs. Raises BackendError with ONNX Runtime's own words."""
    return _guarded(lambda: session.run(None, dict(feeds))[0], name)


def run_bound(
    session: Any,
    inputs: Mapping[str, Any],
    outputs: Mapping[str, Any],
    name: str,
    rows: Mapping[str, Rows] | None = None,
    number: int = 0,
    device: str = "cpu",
) -> None:
    """Run from and into OrtValues that stay where they are, and from row `number` of `rows`. Raises BackendError.

    run_with_iobinding waits for the session's stream before it returns, so another session may read the outputs.
    """
    binding = session.io_binding()
    for key, table in (rows or {}).items():
        table.bind(binding, key, number, device)
    for key, value in inputs.items():
        binding.bind_ortvalue_input(key, value)
    for key, value in outputs.items():
        binding.bind_ortvalue_output(key, value)
    _guarded(lambda: session.run_with_iobinding(binding), name)


def _guarded(call: Callable[[], T], name: str) -> T:
    try:
        return call()
    except Exception as error:  # onnxruntime's classes share no base of their own
        raise BackendError(
            f"onnxruntime {ort.__version__} failed in the network {name!r}: {str(error).splitlines()[0]}; "
            "if memory ran out, lower max_batch"
        ) from error
