"""DINOv2 as feature network: a small one with random weights, from its folder to a bundle that judges."""

from __future__ import annotations

import json
from pathlib import Path

import onnx
import pytest
import torch
from transformers import Dinov2Config, Dinov2Model

from anomalysd_edge.errors import InputError, ShapeError
from anomalysd_edge.method.networks import NetworkSizes
from anomalysd_edge.training.models.dino_features import load_dino
from anomalysd_edge.training.models.features import features_of
from anomalysd_export.graphs import graph_specs
from anomalysd_export.onnx_export import export_graph
from anomalysd_export.parity import prove


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    config = Dinov2Config(
        hidden_size=24, num_hidden_layers=2, num_attention_heads=2, mlp_ratio=2, image_size=70, patch_size=14
    )
    place = tmp_path_factory.mktemp("dino") / "small"
    Dinov2Model(config).save_pretrained(place)
    return place


def test_tokens_are_those_of_transformers(folder: Path) -> None:
    """The oracle interpolates its positions in every call; ours were brought to the grid once."""
    net, source = load_dino(str(folder))
    assert (net.side, source.split(",")[0]) == (448, "dinov2 small")
    photos = torch.rand(2, 3, 448, 448, generator=torch.Generator().manual_seed(1)) * 2 - 1
    oracle = Dinov2Model.from_pretrained(folder).eval()
    mean, spread = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    seen = ((photos + 1) / 2 - mean.view(1, 3, 1, 1)) / spread.view(1, 3, 1, 1)
    with torch.no_grad():
        tokens = oracle(pixel_values=seen).last_hidden_state[:, 1:]
        found = net(photos)
    wanted = torch.nn.functional.normalize(tokens, dim=2).transpose(1, 2).reshape(2, 24, 32, 32)
    torch.testing.assert_close(found, wanted, atol=2e-5, rtol=0)
    with pytest.raises(ShapeError, match="448 px"):
        net(photos[..., :224])


def test_a_larger_side_has_more_patches(folder: Path) -> None:
    net, _, kind = features_of(f"{folder}@126")
    assert kind == "dinov2"
    assert net(torch.zeros(1, 3, 126, 126)).shape == (1, 24, 9, 9)
    with pytest.raises(InputError, match="125 px do not divide"):
        features_of(f"{folder}@125")


def test_a_name_stands_for_a_hub_id(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    wanted: list[str] = []

    def from_hub(name: str, *_: object) -> Path:
        wanted.append(name)
        return folder

    monkeypatch.setattr("anomalysd_edge.training.models.dino_features.from_hub", from_hub)
    assert load_dino("dinov2-base")[1].startswith("dinov2 dinov2-base, sha256 ")
    load_dino("someone/dinov2-giant")
    assert wanted == ["facebook/dinov2-base", "someone/dinov2-giant"]


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (lambda f: (f / "model.safetensors").unlink(), "has no model.safetensors"),
        (lambda f: (f / "config.json").write_text("{"), "not the JSON of a model"),
        (lambda f: (f / "config.json").write_text(json.dumps({"model_type": "vit"})), "type 'vit'; expected dinov2"),
        (lambda f: (f / "model.safetensors").write_bytes(b"no weights"), "the DINOv2 .* cannot be loaded"),
    ],
)
def test_a_wrong_folder_is_told(folder: Path, tmp_path: Path, damage: object, sentence: str) -> None:
    assert callable(damage)
    mine = tmp_path / "mine"
    mine.mkdir()
    for file in folder.iterdir():
        (mine / file.name).write_bytes(file.read_bytes())
    damage(mine)
    with pytest.raises(InputError, match=sentence):
        load_dino(str(mine))


@pytest.mark.slow
def test_the_graph_says_what_torch_says(folder: Path, tmp_path: Path) -> None:
    """Traced at one batch size, proved at another; the positions are constants of the graph."""
    net, _ = load_dino(str(folder))
    spec = graph_specs(NetworkSizes(64, 4, 8, net.side), 16)["features"]
    module = export_graph(spec, net, tmp_path / "features.onnx")
    found = prove(spec, module, tmp_path / "features.onnx")
    assert found.max_abs <= spec.tolerance
    assert found.outputs[0].shape[1:] == (24, 32, 32)
    assert "Resize" not in {node.op_type for node in onnx.load(tmp_path / "features.onnx").graph.node}
