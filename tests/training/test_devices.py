"""Which device a training takes, what float32 is there, and whose memory is given back between the phases."""

from __future__ import annotations

import gc
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch

from anomalysd_edge.errors import BackendError, SettingsError
from anomalysd_edge.training import train as training
from anomalysd_edge.training.data import TrainingData
from anomalysd_edge.training.devices import autocast_dtype, check_training_device, plain_float32
from anomalysd_edge.training.distilling import DistillSettings, distill
from anomalysd_edge.training.loop import TrainingLoop
from anomalysd_edge.training.settings import TrainSettings
from anomalysd_edge.training.trainer import Trainer
from tests.support.command import ROOT
from tests.support.tiny_models import tiny_base
from tests.support.tiny_training import SPECS, tiny_settings

RUN = ROOT / "tests/data/version_0_1_0/run"
SHOTS = {"nut": [RUN / "shots/nut/0.png"]}
WITHOUT_CUDA = pytest.mark.skipif(torch.cuda.is_available(), reason="this torch sees a GPU")


@WITHOUT_CUDA
def test_distilling_without_cuda_is_one_sentence(tmp_path: Path) -> None:
    from anomalysd_edge.training.run import read_run

    with pytest.raises(BackendError, match="device cuda was asked for, but torch"):
        distill(read_run(RUN), tmp_path / "out", DistillSettings(device="cuda"))
    with pytest.raises(SettingsError, match="device is 'gpu'; expected one of cpu, cuda"):
        DistillSettings(device="gpu")


def test_every_process_takes_a_gpu_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[int] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setattr(torch.cuda, "set_device", taken.append)
    for rank in ("0", "3"):
        monkeypatch.setenv("LOCAL_RANK", rank)
        check_training_device("cuda")
    assert taken == [0, 3]
    check_training_device("cpu")
    monkeypatch.setenv("LOCAL_RANK", "4")
    with pytest.raises(BackendError, match="rank 4 has no GPU: torch sees 4"):
        check_training_device("cuda")
    assert taken == [0, 3]


def test_bf16_is_for_hardware_that_computes_in_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Turing emulates it: torch says that it is supported, unless emulation does not count."""
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation)
    settings = TrainSettings(device="cuda", autocast="auto")
    assert autocast_dtype(settings) is None
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: True)
    assert autocast_dtype(settings) == torch.bfloat16


def test_float32_on_a_gpu_is_float32_for_as_long_as_it_is_wanted() -> None:
    def flags() -> tuple[bool, bool, bool]:
        cudnn = torch.backends.cudnn
        return cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32, cudnn.deterministic

    before = flags()
    assert before[0], "torch's default for convolutions"
    with plain_float32("cuda:0"):
        assert flags() == (False, False, True)
    assert flags() == before
    with plain_float32("cpu"):
        assert flags() == before


def test_the_unet_leaves_the_gpu_with_its_gradients(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Moved before the decoder's phase, its old memory must be free. Another type stands for another device."""
    alive: list[bool] = []

    def watched(trainer: Trainer, loop: TrainingLoop, data: TrainingData) -> None:
        unet = trainer.base.unet
        old = [weakref.ref(weight.untyped_storage()) for weight in unet.parameters()]
        assert all(weight.grad is None for weight in unet.parameters())
        unet.to(torch.float64)
        gc.collect()
        alive.extend(reference() is not None for reference in old)
        unet.to(torch.float32)
        assert set(loop.unet_tensors) == {name for name, _ in unet.named_parameters()}

    monkeypatch.setattr(Trainer, "_train_decoder", watched)
    settings = tiny_settings(tiny_base(tmp_path / "base"), steps=1, decoder_steps=1)
    training.train(settings, SHOTS, tmp_path / "run", SPECS)
    assert alive
    assert not any(alive), f"{sum(alive)} of {len(alive)} weights are still where the network was"


@pytest.mark.gpu
def test_the_decoder_phase_fits_its_estimate_on_a_gpu(tmp_path: Path) -> None:
    if not torch.cuda.is_available():
        pytest.skip("torch sees no NVIDIA GPU here: memory between the phases was not measured")
    held: list[int] = []
    real = Trainer._train_decoder

    def measured(trainer: Any, loop: TrainingLoop, data: TrainingData) -> None:
        before = torch.cuda.memory_allocated()
        real(trainer, loop, data)
        held.append(before - torch.cuda.memory_allocated())

    settings = tiny_settings(tiny_base(tmp_path / "base"), steps=1, decoder_steps=1, device="cuda")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "_train_decoder", measured)
        run = training.train(settings, SHOTS, tmp_path / "run", SPECS)
    unet = sum(weight.numel() * 4 for weight in run.load().unet.parameters())
    assert held[0] > 0.9 * unet, "the UNet's weights stayed on the GPU"


@pytest.mark.gpu
def test_a_convolution_on_a_gpu_is_the_cpus() -> None:
    if not torch.cuda.is_available():
        pytest.skip("torch sees no NVIDIA GPU here: TF32 was not measured")
    torch.manual_seed(0)
    images, kernel = torch.randn(2, 256, 32, 32), torch.randn(256, 256, 3, 3)
    right = torch.nn.functional.conv2d(images.double(), kernel.double())
    with plain_float32("cuda"):
        found = torch.nn.functional.conv2d(images.cuda(), kernel.cuda()).cpu()
    assert float((found - right).abs().max() / right.abs().max()) < 1e-5
