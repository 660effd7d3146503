"""The perceptual distance against LPIPS' definition, read again in a few lines, on random and on trained weights."""

from __future__ import annotations

import warnings
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from anomalysd_edge.errors import InputError, ShapeError
from anomalysd_edge.training.models.perceptual import (
    CHANNELS,
    AlexPerceptual,
    load_perceptual,
    package_file,
    read_weights,
)


def lpips_by_definition(weights: dict[str, Tensor], heads: list[Tensor], a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """lpips.LPIPS(net="alex", spatial=True).forward and spatial=False, written from the paper: (N,1,H,W), (N,)."""
    shift, scale = torch.tensor([-0.030, -0.088, -0.188]), torch.tensor([0.458, 0.448, 0.450])

    def alexnet(x: Tensor) -> list[Tensor]:
        def conv(i: int, x: Tensor, **kwargs: int) -> Tensor:
            return functional.relu(functional.conv2d(x, weights[f"{i}.weight"], weights[f"{i}.bias"], **kwargs))

        one = conv(0, (x - shift[:, None, None]) / scale[:, None, None], stride=4, padding=2)
        two = conv(3, functional.max_pool2d(one, 3, 2), padding=2)
        three = conv(6, functional.max_pool2d(two, 3, 2), padding=1)
        four = conv(8, three, padding=1)
        return [one, two, three, four, conv(10, four, padding=1)]

    spatial, mean = torch.zeros(len(a), 1, *a.shape[-2:]), torch.zeros(len(a))
    for f, g, head in zip(alexnet(a), alexnet(b), heads, strict=True):
        unit_f = f / (torch.sqrt(torch.sum(f**2, dim=1, keepdim=True)) + 1e-10)
        unit_g = g / (torch.sqrt(torch.sum(g**2, dim=1, keepdim=True)) + 1e-10)
        layer = functional.conv2d((unit_f - unit_g) ** 2, head)
        spatial += torch.nn.Upsample(size=a.shape[-2:], mode="bilinear", align_corners=False)(layer)
        mean += layer.mean((1, 2, 3))
    return spatial, mean


def random_trunk() -> dict[str, Tensor]:
    noise = torch.Generator().manual_seed(3)
    shapes = {0: (64, 3, 11), 3: (192, 64, 5), 6: (384, 192, 3), 8: (256, 384, 3), 10: (256, 256, 3)}
    trunk = {}
    for i, (outputs, inputs, kernel) in shapes.items():
        spread = (2 / (inputs * kernel * kernel)) ** 0.5
        trunk[f"{i}.weight"] = torch.randn(outputs, inputs, kernel, kernel, generator=noise) * spread
        trunk[f"{i}.bias"] = torch.randn(outputs, generator=noise) * 0.1
    return trunk


def photos(count: int, seed: int, side: int = 64) -> Tensor:
    return torch.rand(count, 3, side, side, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def test_equals_lpips_on_a_random_trunk_with_its_own_heads() -> None:
    file = package_file("lpips", "weights/v0.1/alex.pth")
    if file is not None:
        heads = read_weights(file)
    else:
        noise = torch.Generator().manual_seed(4)
        heads = {f"lin{i}.model.1.weight": torch.rand(1, c, 1, 1, generator=noise) for i, c in enumerate(CHANNELS)}
    trunk = random_trunk()
    network = AlexPerceptual("lpips_alex")
    network.load(trunk, ("0", "3", "6", "8", "10"), heads)
    references, repaints = photos(2, 0), photos(3, 1)
    reference_of = torch.tensor([1, 0, 1])
    spatial, mean = lpips_by_definition(
        trunk, [heads[f"lin{i}.model.1.weight"] for i in range(5)], references[reference_of], repaints
    )
    ours = network(references, repaints, reference_of)
    assert ours.shape == (3, 64, 64)
    torch.testing.assert_close(ours, spatial[:, 0], rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(network.mean_distance(references[reference_of], repaints), mean, rtol=1e-6, atol=1e-6)


def test_equals_the_package_lpips_itself() -> None:
    """Where torchvision fits beside torch the package runs (extra lpips): a random trunk, its trained heads."""
    if find_spec("torchvision") is None or find_spec("lpips") is None:
        pytest.skip("lpips with torchvision is not installed (extra lpips)")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torchvision's: the package calls it by names of 2018
        lpips = import_module("lpips")
        theirs = lpips.LPIPS(net="alex", spatial=True, pnet_rand=True, verbose=False).eval()
    state = theirs.state_dict()
    ours = AlexPerceptual("lpips_alex")
    slices = ("slice1.0", "slice2.3", "slice3.6", "slice4.8", "slice5.10")
    ours.load(state, tuple(f"net.{name}" for name in slices), state)
    references, repaints = photos(2, 0), photos(3, 1)
    reference_of = torch.tensor([1, 0, 1])
    with torch.no_grad():
        expected = theirs(references[reference_of], repaints)
    torch.testing.assert_close(ours(references, repaints, reference_of), expected[:, 0], rtol=1e-6, atol=1e-6)


def test_shift_tolerant_weights_load_and_measure() -> None:
    if package_file("stlpips_pytorch", "weights/vST0.0/alex_shift_tolerant.pth") is None:
        pytest.skip("stlpips-pytorch is not installed")
    network, source = load_perceptual("shift_tolerant")
    assert network.kind == "shift_tolerant"
    assert "stlpips" in source
    photo = photos(1, 0)
    darker = photo * 0.9
    hole = photo.clone()
    hole[..., 16:32, 16:32] = 0.0
    distance = network(photo, torch.cat([photo, darker, hole]), torch.tensor([0, 0, 0]))
    assert distance[0].max() < 1e-12, "identical photos have distance 0, but for another rounding in another batch"
    assert network(photo, photo, torch.tensor([0])).max() == 0.0
    assert distance.min() >= 0.0
    assert distance[2, 16:32, 16:32].mean() > 4 * distance[2, 48:, 48:].mean(), "the change is found where it is"
    assert distance[2].mean() > distance[1].mean()


def test_trained_file_is_the_architecture_we_define() -> None:
    """The blur filters stored in the file are the ones that AlexPerceptual computes with."""
    file = package_file("stlpips_pytorch", "weights/vST0.0/alex_shift_tolerant.pth")
    if file is None:
        pytest.skip("stlpips-pytorch is not installed")
    weights, network = read_weights(file), AlexPerceptual("shift_tolerant")
    for name in ("net.slice1.1.filt", "net.slice2.4.filt", "net.slice3.8.filt"):
        assert torch.equal(weights[name], network.blur.expand_as(weights[name]))
    assert torch.equal(weights["scaling_layer.scale"], network.scale)
    assert torch.equal(weights["scaling_layer.shift"], network.shift)


def test_gradient_is_finite_where_all_channels_are_dead() -> None:
    network = AlexPerceptual("lpips_alex")
    for convolution in network.convolutions:
        torch.nn.init.constant_(convolution.bias, -100.0)  # type: ignore[arg-type]
    repaint = photos(1, 1).requires_grad_()
    (gradient,) = torch.autograd.grad(network.mean_distance(photos(1, 0), repaint).sum(), repaint)
    assert torch.isfinite(gradient).all()


def test_bad_inputs(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="unknown"):
        load_perceptual("vgg")
    with pytest.raises(ShapeError, match="32 x 32"):
        AlexPerceptual("lpips_alex").trunk(photos(1, 0, side=16))
    if package_file("lpips", "weights/v0.1/alex.pth") is not None:
        with pytest.raises(InputError, match="not found at"):
            load_perceptual("lpips_alex", trunk=tmp_path / "none.pth")
        wrong = tmp_path / "wrong.pth"
        wrong.write_bytes(b"not a trunk")
        with pytest.raises(InputError, match="expected 7be5be79"):
            load_perceptual("lpips_alex", trunk=wrong)
        with pytest.raises(InputError, match="cannot be read as weights"):
            read_weights(wrong)
