"""What makes a large model fit: pieces, halves, caches, several processes; and the estimate that says so beforehand."""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from anomalysd_edge.cli.training import graphs_of, settings_of
from anomalysd_edge.data.classes import ClassSpec
from anomalysd_edge.errors import InputError, MissingExtra, RunError, SettingsError
from anomalysd_edge.method.inpainting.schedule import NoiseSchedule
from anomalysd_edge.training import memory
from anomalysd_edge.training.distributed import Processes
from anomalysd_edge.training.lora import add_adapter, lower_frozen
from anomalysd_edge.training.models.base import load_base, load_unet, prompt_states
from anomalysd_edge.training.prompt_tuning import context_states, first_contexts
from anomalysd_edge.training.run import Run, read_run
from anomalysd_edge.training.settings import TrainSettings
from anomalysd_edge.training.train import train
from tests.support.tiny_models import TINY_PX, tiny_base

SPECS = {"nut": ClassSpec("nut", "nut", "object", ("thread",)), "felt": ClassSpec("felt", "felt", "texture")}


@pytest.fixture(scope="module")
def base_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_base(tmp_path_factory.mktemp("models") / "tiny", vae="kl")


@pytest.fixture(scope="module")
def shots(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Path]]:
    folder, rng = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    found: dict[str, list[Path]] = {}
    for name in SPECS:
        path = folder / name / "0.png"
        path.parent.mkdir()
        Image.fromarray(rng.integers(60, 160, (40, 40, 3)).astype(np.uint8)).save(path)
        found[name] = [path]
    return found


def small(base: Path, **changes: Any) -> TrainSettings:
    values: dict[str, Any] = {
        "shots": 1, "steps": 3, "batch": 4, "lr": 1e-3, "warmup": 1, "decoder_steps": 0, "decoder_batch": 2,
        "decoder_lr": 1e-3, "lpips_weight": 0.0, "copies": 2, "masks_per_copy": 2, "start_corruption": 0.5,
        "checkpoint_every": 2, "autocast": "none", "threads": 1,
    }  # fmt: skip
    return TrainSettings.for_base(str(base), **{**values, **changes})


def weights_of(run: Run, part: str = "unet") -> dict[str, torch.Tensor]:
    return dict(load_file(run.model / part / "diffusion_pytorch_model.safetensors"))


def apart(base: Path, one: Run, other: Run, part: str = "unet") -> float:
    """How far two runs' weights lie apart, as a share of how far training moved them.

    Not weight by weight: where a gradient is 0 but for rounding (a bias before a normalisation), Adam makes a whole
    step of the rounding's sign.
    """
    begun = load_file(base / part / "diffusion_pytorch_model.safetensors")
    a, b = weights_of(one, part), weights_of(other, part)
    gap = sum(float((a[name] - b[name]).square().sum()) for name in begun)
    return float(np.sqrt(gap / sum(float((a[name] - begun[name]).square().sum()) for name in begun)))


def losses_of(run: Run) -> list[float]:
    return [json.loads(line)["loss"] for line in (run.path / "log.jsonl").read_text().splitlines()]


class Stop:
    """Presses Ctrl-C when phase `phase` has done `step` steps."""

    def __init__(self, phase: str, step: int) -> None:
        self.where = phase, step

    def __call__(self, phase: str, done: int, total: int, detail: str) -> None:
        if (phase, done) == self.where:
            raise KeyboardInterrupt


def test_pieces_make_the_same_step(tmp_path: Path, base_folder: Path, shots: dict[str, list[Path]]) -> None:
    whole = train(small(base_folder, decoder_steps=2), shots, tmp_path / "whole", SPECS)
    pieces = train(small(base_folder, decoder_steps=2, accumulate=3), shots, tmp_path / "pieces", SPECS)
    np.testing.assert_allclose(losses_of(whole), losses_of(pieces), rtol=1e-5)
    assert apart(base_folder, whole, pieces) < 0.02
    assert apart(base_folder, whole, pieces, "vae") < 0.02
    other = train(small(base_folder, seed=1), shots, tmp_path / "other", SPECS)
    assert apart(base_folder, whole, other) > 0.2, "the bound above can fail"
    with pytest.raises(SettingsError, match="accumulate is 5; expected at most batch"):
        small(base_folder, accumulate=5)


def test_encoding_ahead_changes_nothing(tmp_path: Path, base_folder: Path, shots: dict[str, list[Path]]) -> None:
    lazy = train(small(base_folder, decoder_steps=2), shots, tmp_path / "lazy", SPECS)
    settings = small(base_folder, decoder_steps=2, cache="ahead")
    with pytest.raises(KeyboardInterrupt):
        train(settings, shots, tmp_path / "ahead", SPECS, progress=Stop("decoder", 1))
    ahead = train(settings, shots, tmp_path / "ahead", SPECS, resume=True)
    for part in ("unet", "vae"):
        one, other = weights_of(lazy, part), weights_of(ahead, part)
        assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("half", ["bf16", "fp16"])
def test_frozen_halves_come_back_exact(
    tmp_path: Path, base_folder: Path, shots: dict[str, list[Path]], half: str
) -> None:
    """Only the adapted layers change, by a low rank; everything else is the base's to the bit. Resume does not show."""
    chosen = {"lora_rank": 2, "lora_targets": ("to_q",), "lr": 1e-2, "autocast": half, "frozen_weights": half}
    settings = small(base_folder, **chosen)
    with pytest.raises(KeyboardInterrupt):
        train(settings, shots, tmp_path / "run", SPECS, progress=Stop("train", 3))
    run = train(settings, shots, tmp_path / "run", SPECS, resume=True)
    unbroken = train(settings, shots, tmp_path / "unbroken", SPECS)
    after = weights_of(run)
    assert all(torch.equal(after[name], value) for name, value in weights_of(unbroken).items())
    before = load_file(base_folder / "unet" / "diffusion_pytorch_model.safetensors")
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {name for name in before if name.endswith("to_q.weight")}
    difference = after[min(changed)] - before[min(changed)]
    assert torch.linalg.matrix_rank(difference.double(), atol=1e-5, rtol=1e-3) <= 2
    for wrong in ({"lora_rank": 0}, {"autocast": "none"}):
        with pytest.raises(SettingsError, match="frozen_weights"):
            small(base_folder, **{**chosen, **wrong})


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="Linux lists what a process has mapped")
def test_frozen_halves_let_go_of_the_weight_file(base_folder: Path) -> None:
    """At Stable Diffusion's size the file is 3.4 GB, of which norms need less than one MB."""
    file = str((base_folder / "unet" / "diffusion_pytorch_model.safetensors").resolve())
    unet = load_unet(base_folder)
    assert file in Path("/proc/self/maps").read_text(), "weights are read as pages of their file"
    settings = small(base_folder, lora_rank=2, autocast="bf16", frozen_weights="bf16")
    add_adapter(unet, settings)
    lower_frozen(unet, settings)
    gc.collect()
    assert file not in Path("/proc/self/maps").read_text()


def test_eight_bit_adam_resumes_to_the_bit(tmp_path: Path, base_folder: Path, shots: dict[str, list[Path]]) -> None:
    pytest.importorskip("bitsandbytes", reason="8-bit Adam is an option that nothing installs by itself")
    settings = small(base_folder, optimizer="adamw8bit")
    unbroken = train(settings, shots, tmp_path / "unbroken", SPECS)
    with pytest.raises(KeyboardInterrupt):
        train(settings, shots, tmp_path / "run", SPECS, progress=Stop("train", 3))
    resumed = train(settings, shots, tmp_path / "run", SPECS, resume=True)
    one, other = weights_of(unbroken), weights_of(resumed)
    assert all(torch.equal(one[name], other[name]) for name in one)
    plain = train(small(base_folder), shots, tmp_path / "plain", SPECS)
    assert 0 < apart(base_folder, plain, unbroken) < 0.2, "the same way, in coarser steps"


def test_eight_bit_adam_is_asked_for_by_name(
    tmp_path: Path, base_folder: Path, shots: dict[str, list[Path]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    monkeypatch.setitem(sys.modules, "bitsandbytes.optim", None)
    with pytest.raises(MissingExtra, match="pip install bitsandbytes, or set optimizer to adamw"):
        train(small(base_folder, optimizer="adamw8bit"), shots, tmp_path / "run", SPECS)
    assert list(tmp_path.iterdir()) == []


def test_the_estimate_falls_with_every_option(base_folder: Path) -> None:
    base = load_base(base_folder)
    taken = []
    changes: dict[str, Any] = {"batch": 8, "ema": 0.9}
    for more in (
        {},
        {"gradient_checkpointing": True},
        {"accumulate": 8},
        {"ema": 0.0},
        {"lora_rank": 2},
        {"autocast": "bf16", "frozen_weights": "bf16"},
        {"cache": "ahead"},
    ):
        changes.update(more)
        taken.append(memory.estimate(base, small(base_folder, **changes), 64).unet)
    assert taken == sorted(taken, reverse=True)
    assert len(set(taken)) == len(taken)


def test_the_estimate_counts_what_a_step_holds(base_folder: Path) -> None:
    """Full fine-tuning: weights, gradients, two moments and an average are five times the weights, plus activations."""
    base = load_base(base_folder)
    settings = small(base_folder, ema=0.9, cache="ahead", batch=1)
    weights = sum(weight.numel() * 4 for weight in base.unet.parameters())
    taken = (memory.estimate(base, settings, TINY_PX).unet - memory.LIBRARIES["cpu"]) / memory.FRAGMENTS
    assert 5 * weights < taken < 5 * weights + 12e6
    twice = memory.estimate(base, small(base_folder, ema=0.9, cache="ahead", batch=9), TINY_PX).unet
    more = memory.estimate(base, small(base_folder, ema=0.9, cache="ahead", batch=17), TINY_PX).unet
    assert more > twice, "activations grow with the batch"


def test_too_little_memory_names_the_settings(tmp_path: Path, base_folder: Path, shots: dict[str, list[Path]]) -> None:
    settings = small(base_folder, batch=64, accumulate=1, steps=1)
    need = memory.estimate(load_base(base_folder), settings, TINY_PX).peak / memory.GIB
    limited = small(base_folder, batch=64, steps=1, memory_gib=need * 0.995)
    with pytest.raises(SettingsError, match=r"GiB are allowed by memory_gib: set gradient_checkpointing = True \("):
        train(limited, shots, tmp_path / "run", SPECS)
    least = {"gradient_checkpointing": True, "accumulate": 4, "cache": "ahead"}
    halves = {"lora_rank": 2, "autocast": "bf16", "frozen_weights": "bf16"}
    hopeless = small(base_folder, memory_gib=0.1, **least, **halves)
    with pytest.raises(SettingsError, match="even that is not enough"):
        train(hopeless, shots, tmp_path / "run", SPECS)
    assert list(tmp_path.iterdir()) == []
    run = train(small(base_folder, steps=1, memory_gib=4), shots, tmp_path / "run", SPECS)
    assert 0 < run.record["memory_estimate_bytes"] < 4 * memory.GIB


def test_rows_of_processes_cover_the_batch_once(monkeypatch: pytest.MonkeyPatch) -> None:
    alone = Processes("cpu")
    for batch in (1, 2, 5, 8):
        for count in range(1, batch + 1):
            covered: list[int] = []
            for number in range(count):
                alone.count, alone.number = count, number
                for pieces in (1, 3):
                    rows = alone.rows(batch, pieces)
                    assert all(part.stop > part.start for part in rows)
                covered += [i for part in rows for i in range(part.start, part.stop)]
            assert covered == list(range(batch))
    alone.count = 3
    with pytest.raises(SettingsError, match="3 processes share a batch of 2"):
        alone.rows(2, 1)


LAUNCHED = """
import sys
from pathlib import Path
from anomalysd_edge.training.settings import TrainSettings
from anomalysd_edge.training.train import train
from anomalysd_edge.cli.training import graphs_of, settings_of
from tests.training.test_training_options import SPECS
import json
values = json.loads(sys.argv[1])
shots = {name: [Path(p) for p in paths] for name, paths in json.loads(sys.argv[2]).items()}
train(TrainSettings.from_json(values), shots, Path(sys.argv[3]), SPECS)
"""


def test_two_processes_are_one_with_the_same_batch(
    tmp_path: Path, base_folder: Path, shots: dict[str, list[Path]]
) -> None:
    """gloo, two processes of two samples each, through accelerate, against one of four."""
    settings = small(base_folder, decoder_steps=2, context_tokens=1, accumulate=2)
    alone = train(settings, shots, tmp_path / "alone", SPECS)
    script = tmp_path / "launched.py"
    script.write_text(LAUNCHED)
    # accelerate's own launcher starts CPU processes by MPI alone; torch's sets the same variables.
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    names = {name: [str(path) for path in paths] for name, paths in shots.items()}
    done = subprocess.run(
        [*command, str(script), json.dumps(settings.to_json()), json.dumps(names), str(tmp_path / "two")],
        capture_output=True,
        text=True,
        check=False,
        cwd=Path(__file__).parents[2],
        env={**os.environ, "PYTHONPATH": ":".join(sys.path), "OMP_NUM_THREADS": "1"},
        timeout=240,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    two = read_run(tmp_path / "two")
    assert two.record["processes"] == 2
    for part in ("unet", "vae"):
        assert apart(base_folder, alone, two, part) < 0.02
    assert len(losses_of(alone)) == 5
    np.testing.assert_allclose(losses_of(alone), losses_of(two), rtol=1e-5)
    for name in SPECS:
        torch.testing.assert_close(alone.contexts()[name], two.contexts()[name], atol=1e-4, rtol=1e-3)


def test_contexts_learn_and_travel(tmp_path: Path, base_folder: Path, shots: dict[str, list[Path]]) -> None:
    settings = small(base_folder, context_tokens=2, context_lr=1e-2, prompt_drop=0.0)
    run = train(settings, shots, tmp_path / "run", SPECS)
    base = load_base(base_folder)
    first, learned = first_contexts(base, SPECS, 2), run.contexts()
    assert learned.keys() == SPECS.keys()
    for name in SPECS:
        assert learned[name].shape == (2, 32)
        assert float((learned[name] - first[f"context/{name}"].detach()).abs().max()) > 1e-3
    for part in ("text_encoder",):
        for file in (base_folder / part).iterdir():
            assert (run.model / part / file.name).read_bytes() == file.read_bytes(), "the text encoder stays"
    with pytest.raises(KeyboardInterrupt):
        train(settings, shots, tmp_path / "again", SPECS, progress=Stop("train", 3))
    again = train(settings, shots, tmp_path / "again", SPECS, resume=True)
    assert all(torch.equal(learned[name], again.contexts()[name]) for name in SPECS)
    (run.path / "contexts.safetensors").write_bytes((again.path / "lora").name.encode())
    with pytest.raises(RunError, match="was changed"):
        run.contexts()


def test_context_states_are_the_encoders_own(base_folder: Path) -> None:
    """Vectors that are a word's embeddings give the states of the prompt with that word in front."""
    base = load_base(base_folder)
    words = base.tokenizer("ab", add_special_tokens=False).input_ids
    vectors = base.text_encoder.get_input_embeddings().weight[words][None].detach()
    expected = prompt_states(base, ["ab c d"])
    torch.testing.assert_close(context_states(base, ["c d"], vectors), expected)
    long = "x " * 100
    cut = context_states(base, [long], vectors)
    torch.testing.assert_close(cut, prompt_states(base, ["ab " + long]))


def test_a_tiny_autoencoder_takes_the_bases_place(
    tmp_path: Path, base_folder: Path, shots: dict[str, list[Path]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    tiny = tiny_base(tmp_path / "other") / "vae"
    run = train(small(base_folder, vae=str(tiny), steps=1, decoder_steps=3), shots, tmp_path / "run", SPECS)
    loaded = run.load()
    assert type(loaded.vae).__name__ == "AutoencoderTiny"
    before, after = load_file(tiny / "diffusion_pytorch_model.safetensors"), weights_of(run, "vae")
    changed = {name.split(".")[0] for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"decoder"}
    assert run.round_trip
    assert run.record["vae"]["name"] == "vae"
    plain = train(small(base_folder, steps=1), shots, tmp_path / "plain", SPECS)
    assert not plain.round_trip
    with pytest.raises(InputError, match=r"hf download madebyollin/taesd --local-dir FOLDER.*name it as the vae"):
        train(small(base_folder, vae="tiny"), shots, tmp_path / "no", SPECS)
    with pytest.raises(InputError, match="expected an AutoencoderTiny"):
        train(small(base_folder, vae=str(base_folder / "vae")), shots, tmp_path / "no", SPECS)
    config = json.loads((tiny / "config.json").read_text())
    blocks = {key: config[key] + [0] for key in ("num_encoder_blocks", "num_decoder_blocks")}
    widths = {key: [16] * 4 for key in ("encoder_block_out_channels", "decoder_block_out_channels")}
    from diffusers import AutoencoderTiny

    AutoencoderTiny(**{**blocks, **widths}).save_pretrained(tmp_path / "eight")
    with pytest.raises(InputError, match="at 8 px a cell, the base's UNet expects 4 at 4"):
        train(small(base_folder, vae=str(tmp_path / "eight")), shots, tmp_path / "no", SPECS)


def test_the_prediction_type_can_be_given(tmp_path: Path, base_folder: Path, shots: dict[str, list[Path]]) -> None:
    run = train(small(base_folder, prediction_type="v_prediction", steps=1), shots, tmp_path / "run", SPECS)
    assert NoiseSchedule.from_config(run.load().scheduler).prediction_type == "v_prediction"
    assert NoiseSchedule.from_config(load_base(base_folder).scheduler).prediction_type == "epsilon"


def test_sizes_that_the_networks_cannot_halve(tmp_path: Path, base_folder: Path, shots: dict[str, list[Path]]) -> None:
    with pytest.raises(SettingsError, match="the size is 44 px, expected a multiple of 8"):
        train(small(base_folder, size_px=44), shots, tmp_path / "run", SPECS)
    assert train(small(base_folder, size_px=48, steps=1), shots, tmp_path / "run", SPECS).size_px == 48


def test_settings_by_word() -> None:
    words = ["accumulate=4", "lora-targets=to_q, to_k", "gradient_checkpointing=yes", "lr=1e-4", "vae=tiny"]
    assert settings_of(words) == {
        "accumulate": 4,
        "lora_targets": ("to_q", "to_k"),
        "gradient_checkpointing": True,
        "lr": 1e-4,
        "vae": "tiny",
    }
    for wrong, said in (("accumulate=two", "a whole number"), ("ema", "NAME=VALUE"), ("base=x", "NAME=VALUE")):
        with pytest.raises(SettingsError, match=said):
            settings_of([wrong])
    graphs = graphs_of("fp32,fp16", None, "1,4")
    assert (graphs["precisions"], graphs["size_px"], graphs["batches"]) == (("fp32", "fp16"), 0, (1, 4))
    with pytest.raises(SettingsError, match="expected dynamic or whole numbers"):
        graphs_of("fp32", None, "many")
