"""One torch module to one ONNX file, and nothing said on the way."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from anomalysd_edge.errors import ParityError, RunError, missing_extra
from anomalysd_export.graph_metadata import describe
from anomalysd_export.graphs import GraphSpec

OPSET = 18
"""ONNX operator set: the newest that ONNX Runtime 1.23 and TensorRT 10.3 both read without conversions."""
INLINE_BYTES = 100 * 2**20
"""Weights above this go to model.onnx.data: one protobuf file holds 2 GiB at most, and large ones load slowly."""

_HARMLESS = (
    # torch's own use of what torch deprecates
    (FutureWarning, r".*isinstance\(treespec, LeafSpec\).*"),
    # the batch axis occurs in several inputs: one name for all of them is what we ask for
    (UserWarning, r".*The axis name: .* will not be used.*"),
)


def export_graph(
    spec: GraphSpec, network: Any, file: Path, seed: int = 0, facts: Mapping[str, str] | None = None
) -> nn.Module:
    """Write `network` to `file` as the graph of `spec` and return the wrapped module, in eval mode.

    `facts` are further properties that the file carries, by key: graph_metadata.describe.
    Weights stay inline up to INLINE_BYTES and lie in `file`.data above. Raises MissingExtra without the onnx packages
    and RunError for a network that torch cannot export.
    """
    for package in ("onnx", "onnxscript"):
        if not _installed(package):
            raise missing_extra(package, "export")
    module = spec.wrap(network).eval()
    example = spec.example(seed)
    # Names, not torch.export.Dim: diffusers' upsampling asks whether the batch reaches 64 (for a memory layout that a
    # graph does not have). A Dim takes that for a broken promise, and everything is traced a second time.
    dynamic = tuple({i: axis for i, axis in enumerate(entry.shape) if isinstance(axis, str)} for entry in spec.inputs)
    with _quiet(), torch.no_grad():
        try:
            program = torch.onnx.export(
                module,
                tuple(torch.from_numpy(example[entry.name]) for entry in spec.inputs),
                input_names=[entry.name for entry in spec.inputs],
                output_names=[entry.name for entry in spec.outputs],
                dynamic_shapes=dynamic,
                opset_version=OPSET,
                dynamo=True,
                verbose=False,
            )
        except torch.onnx.OnnxExporterError as error:
            reason = str(error.__cause__ or error).strip().splitlines()[0]
            raise RunError(
                f"torch {torch.__version__} cannot export the run's network {spec.name!r} ({reason}): "
                "use the torch and diffusers releases that run.json names"
            ) from error
        if program is None:
            raise ParityError(f"torch's exporter gave no graph for the network {spec.name!r}: use the pinned torch")
        describe(program.model, spec, facts or {})
        weights = sum(tensor.numel() * tensor.element_size() for tensor in module.state_dict().values())
        program.save(str(file), external_data=weights > INLINE_BYTES)
    return module


def _installed(package: str) -> bool:
    from importlib.util import find_spec

    return find_spec(package) is not None


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The exporter prints, logs (torchvision is missing) and warns about itself; errors are raised as they are."""
    logger = logging.getLogger("torch.onnx._internal.exporter")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            for category, message in _HARMLESS:
                warnings.filterwarnings("ignore", message, category)
            yield
    finally:
        logger.setLevel(level)
