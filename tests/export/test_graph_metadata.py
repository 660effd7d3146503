"""What ONNX files say about themselves: read from the files, through copies in other precisions, always the same."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

from anomalysd_edge import __version__
from anomalysd_edge.bundle.reader import Bundle
from anomalysd_edge.bundle.update import read_manifest, replace_files, write_manifest, writing
from anomalysd_export.engines.precisions import PrecisionSettings, make_precision
from anomalysd_export.graph_metadata import METHOD, set_properties
from anomalysd_export.graphs import GraphSpec, TensorSpec
from anomalysd_export.onnx_export import export_graph

PHOTO = np.random.default_rng(0).integers(0, 256, (24, 24, 3), dtype=np.uint8)


def properties(file: Path) -> dict[str, str]:
    """metadata_props of an ONNX file."""
    return {entry.key: entry.value for entry in onnx.load(str(file), load_external_data=False).metadata_props}


class Pooled(nn.Module):
    """(N,3,4) -> (N,2,4), by a weight of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.arange(6.0).reshape(2, 3))

    def forward(self, x: Tensor) -> Tensor:
        return torch.sin(self.weight @ x)


SPEC = GraphSpec(
    "pooled",
    (TensorSpec("x", ("batch", 3, 4), meaning="millimetres"),),
    (TensorSpec("y", ("batch", 0, 4), meaning="a sine"),),
    lambda network: network,
    role="an example",
)


@pytest.mark.slow
def test_an_exported_file_tells_what_it_is_and_is_the_same_each_time(tmp_path: Path) -> None:
    for name in ("a", "b"):
        export_graph(SPEC, Pooled(), tmp_path / f"{name}.onnx", facts={"size_px": "4", "license": "MIT"})
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()
    model = onnx.load(str(tmp_path / "a.onnx"))
    onnx.checker.check_model(model)
    assert (model.producer_name, model.producer_version) == ("anomalysd-edge", __version__)
    assert model.doc_string == f"anomalysd-edge {__version__}, pooled: an example"
    assert {entry.key: entry.value for entry in model.metadata_props} == {
        "product": "anomalysd-edge",
        "version": __version__,
        "network": "pooled",
        "role": "an example",
        "precision": "fp32",
        "batch": "any",
        "method": METHOD,
        "size_px": "4",
        "license": "MIT",
        "input.x": "float32 (batch, 3, 4): millimetres",
        "output.y": "float32 (batch, 2, 4): a sine",
    }
    assert model.graph.input[0].doc_string == "float32 (batch, 3, 4): millimetres"
    assert model.graph.output[0].doc_string == "float32 (batch, 2, 4): a sine"
    assert str(Path(__file__).parent).encode() not in (tmp_path / "a.onnx").read_bytes(), "a path of this machine"


@pytest.mark.parametrize(("asked", "unet"), [("fp16", "fp16"), ("bf16", "bf16"), ("int8", "int8"), ("fp8", "fp8")])
def test_copies_in_other_precisions_keep_it(bundle: Bundle, asked: str, unet: str) -> None:
    with writing(bundle.path):
        for name in bundle.manifest.networks:
            file = bundle.network_file(name)
            model = onnx.load(str(file))
            model.producer_name, model.producer_version, model.doc_string = "anomalysd-edge", "9.9", f"the {name}"
            model.graph.input[0].doc_string = "an input"
            set_properties(model, network=name, precision="fp32", license="MIT")
            onnx.save(model, str(file))
        manifest = read_manifest(bundle.path)
        changed = [record.file for record in manifest.networks.values()]
        write_manifest(bundle.path, replace_files(bundle.path, manifest, changed, changed))
        found = make_precision(bundle, PrecisionSettings(asked), [("bottle", PHOTO)], 1)
    for name, record in found.manifest.precisions[asked].networks.items():
        model = onnx.load(str(found.path / record.file))
        rest = unet if asked in ("fp16", "bf16") else "fp16"
        assert properties(found.path / record.file) == {
            "network": name, "precision": unet if name == "unet" else rest, "license": "MIT",
        }  # fmt: skip
        assert (model.producer_name, model.producer_version) == ("anomalysd-edge", "9.9")
        assert model.doc_string == f"the {name}"
        assert model.graph.input[0].doc_string == "an input"
