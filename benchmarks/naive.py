"""Against the naive way, in one run: diffusers' inpainting pipeline called once per mask, then LPIPS on each pair.

    python -m benchmarks.naive --run RUN --bundle BUNDLE --photos DIR --class NAME --count 2 --out results.json

The naive way is what a user would write with diffusers: StableDiffusionInpaintPipeline with the same weights, the same
masks, steps, strength, guidance and starting noise, one call a mask, and then the perceptual distance of photo
and repaint as the lpips package computes it: both pictures through the network for every pair. Its scores must be the
exact plan's to 1e-3; the photos take turns, naive, exact, edge, so that a machine that gets slower does so for all.

The lpips package itself imports torchvision; the distance is its formula over the weights that the bundle holds
(anomalysd_edge/training/perceptual.py, held against the package's definition in the tests).
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import numpy.typing as npt
import torch
from diffusers import StableDiffusionInpaintPipeline

from anomalysd_edge.bundle.detector_factory import class_models, detector_of, preset_settings
from anomalysd_edge.bundle.reader import Bundle, read_bundle
from anomalysd_edge.core.files import read_json, write_json
from anomalysd_edge.core.types import F32, U8
from anomalysd_edge.method import anomaly_map
from anomalysd_edge.method.class_model import ClassModel
from anomalysd_edge.method.detector import Detector
from anomalysd_edge.method.inpainting.mask_plan import GUIDED, Slot, make_plan
from anomalysd_edge.method.inpainting.masks import prototype_guided, to_pixels
from anomalysd_edge.method.patches.memory_bank import prototype_distance
from anomalysd_edge.method.settings import InspectSettings
from anomalysd_edge.profiling.hardware import machine_facts
from anomalysd_edge.training.models.hub import quiet
from anomalysd_edge.training.models.perceptual import AlexPerceptual, load_perceptual
from anomalysd_edge.training.run import Run, read_run, versions
from anomalysd_edge.vision import images
from anomalysd_runtime.onnx.networks import OnnxNetworks
from benchmarks import harness

RANDN = "diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion_inpaint.randn_tensor"


class Naive:
    """One pipeline call a mask, one pair of pictures a distance."""

    def __init__(
        self, run: Run, bundle: Bundle, settings: InspectSettings, name: str, threads: int, device: str = "cpu"
    ) -> None:
        torch.set_num_threads(threads)
        torch.backends.cudnn.allow_tf32 = False  # float32, as ONNX Runtime computes beside it
        with quiet():
            self._pipeline = StableDiffusionInpaintPipeline.from_pretrained(run.model).to(device)
        self._pipeline.set_progress_bar_config(disable=True)
        self._perceptual: AlexPerceptual = load_perceptual(run.perceptual_kind or "auto")[0].to(device)
        self._device = device
        self._settings, self._sizes = settings, bundle.manifest.sizes
        self._prompt = bundle.manifest.classes[name].prompts.whole

    def score(self, photo: U8, slots: list[Slot], repaints: F32 | None = None) -> tuple[float, F32]:
        """Image score and (S,S) map of a photo under the paper's fusion; `repaints` (n,3,S,S) if made elsewhere."""
        settings, sizes = self._settings, self._sizes
        pixels = images.to_array(images.resize(photo, sizes.size_px))
        maps: dict[int, list[tuple[npt.NDArray[np.bool_], F32]]] = {}
        for number, slot in enumerate(slots):
            mask = to_pixels(slot.mask, sizes.latent_factor)
            painted = self._repaint(pixels, mask, slot) if repaints is None else repaints[number : number + 1]
            kept = np.where(mask, painted, pixels)
            with torch.no_grad():
                pair = torch.from_numpy(np.concatenate([pixels, kept])).to(self._device)
                first = torch.zeros(1, dtype=torch.int64, device=self._device)
                far = self._perceptual(pair[:1], pair[1:], first)[0].cpu().numpy()
            maps.setdefault(slot.scale, []).append((mask, far))
        multiscale = anomaly_map.harmonic_mean(
            [
                anomaly_map.covered(np.stack([d for _, d in found]), np.stack([m for m, _ in found]))
                for scale, found in maps.items()
                if scale != GUIDED
            ]
        )
        sigma = settings.repaint_smoothing * sizes.size_px
        fused = anomaly_map.smooth(multiscale, sigma)
        if GUIDED in maps:
            guided = anomaly_map.smooth(maps[GUIDED][0][1], sigma)
            fused = anomaly_map.fuse_paper(fused, guided, settings.alpha)
        return anomaly_map.image_score(fused, settings.top_share), fused

    def _repaint(self, pixels: F32, mask: npt.NDArray[np.bool_], slot: Slot) -> F32:
        sizes, settings = self._sizes, self._settings
        noise = torch.from_numpy(
            slot.noise(settings.seed, (sizes.latent_channels, sizes.latent_side, sizes.latent_side))[None]
        ).to(self._device)
        with mock.patch(RANDN, return_value=noise):
            done = self._pipeline(
                prompt=self._prompt,
                image=torch.from_numpy((pixels + 1) / 2),
                mask_image=torch.from_numpy(mask[None, None].astype(np.float32)),
                height=sizes.size_px,
                width=sizes.size_px,
                strength=settings.strength,
                num_inference_steps=settings.grid_steps,
                guidance_scale=settings.guidance_scale,
                output_type="pt",
            )
        return np.asarray(done.images.cpu().numpy() * 2 - 1, dtype=np.float32)


def optimum_repaints(
    bundle: Bundle,
    run: Run,
    settings: InspectSettings,
    name: str,
    photo: U8,
    slots: list[Slot],
    site: Path,
    threads: int,
) -> tuple[F32, float, float]:
    """(n,3,S,S) repaints by optimum-onnx's pipeline over the bundle's graphs, its calls' seconds and CPU seconds."""
    sizes = bundle.manifest.sizes
    with tempfile.TemporaryDirectory() as work:
        folder = Path(work)
        for network, part in (("unet", "unet"), ("vae_encoder", "vae"), ("vae_decoder", "vae")):
            (folder / network).mkdir()
            (folder / network / "model.onnx").symlink_to(bundle.network_file(network).resolve())
            config = read_json(run.model / part / "config.json")
            # optimum reads the factor of an autoencoder off its levels.
            scaled = {"scaling_factor": 1.0, "block_out_channels": [1] * sizes.latent_factor.bit_length()}
            write_json(folder / network / "config.json", {**config, **(scaled if part == "vae" else {})})
        write_json(folder / "scheduler.json", dict(bundle.manifest.scheduler))
        write_json(
            folder / "settings.json",
            {"threads": threads, "strength": settings.strength, "steps": settings.grid_steps},
        )
        shape = (sizes.latent_channels, sizes.latent_side, sizes.latent_side)
        states = bundle.prompt_states(name, "whole")
        assert states is not None  # every class of a bundle has them
        np.savez(
            folder / "job.npz",
            pixels=images.to_array(images.resize(photo, sizes.size_px)),
            masks=np.stack([to_pixels(slot.mask, sizes.latent_factor) for slot in slots]),
            noises=np.stack([slot.noise(settings.seed, shape) for slot in slots]),
            states=states,
        )
        script = Path(__file__).with_name("optimum_repaints.py")
        environment = {**os.environ, "PYTHONPATH": str(site), "HF_HUB_OFFLINE": "1"}
        subprocess.run([sys.executable, "-W", "ignore", str(script), work], check=True, env=environment)
        done = np.load(folder / "done.npz")
        return done["images"], float(done["seconds"]), float(done["cpu_seconds"])


def slots_of(detector: Detector, constants: ClassModel, photo: U8) -> list[Slot]:
    """The plan's masks and the photo's prototype-guided one."""
    sizes, settings = detector.networks.sizes, detector.settings
    slots = list(make_plan(settings.plan, sizes.latent_side, settings.scales).slots)
    threshold = constants.guided_threshold(settings)
    if constants.banks and threshold is not None:
        seen = images.to_array(images.resize(photo, sizes.features_px))
        distance = prototype_distance(constants.banks[0], detector.networks.features(seen)[0])
        guided = prototype_guided(distance, threshold, sizes.latent_side, dilate=1)
        slots.append(Slot(GUIDED, 0, guided))
    return slots


def main() -> None:
    """Measure and write."""
    parser = harness.parser_of(__doc__, "--threads", "--out")
    parser.add_argument("--run", type=Path, required=True, help="run folder: the weights in torch")
    parser.add_argument("--bundle", type=Path, required=True, help="its bundle")
    parser.add_argument("--photos", type=Path, required=True, help="folder of photos of one class")
    parser.add_argument("--class", dest="name", required=True)
    parser.add_argument("--count", type=int, default=2, help="photos; the naive way takes about a minute each")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="of torch and of ONNX Runtime")
    parser.add_argument("--scales", default="", help="other grids than the preset's, by commas, to spend less time")
    parser.add_argument("--edge-rounds", type=int, default=5, help="edge inspections timed after each photo")
    parser.add_argument("--optimum", type=Path, help="folder that holds optimum-onnx: see optimum_repaints.py")
    asked = parser.parse_args()
    bundle = read_bundle(asked.bundle)
    photos = [images.load_rgb(file) for file in images.list_images(asked.photos)[: asked.count]]
    rows: list[dict[str, float]] = []
    paper = preset_settings(bundle, "paper")
    if asked.scales:
        paper = replace(paper, scales=tuple(harness.numbers(asked.scales)))
    run = read_run(asked.run)
    naive = Naive(run, bundle, paper, asked.name, asked.threads, asked.device)
    with OnnxNetworks.of_bundle(bundle, asked.device, asked.threads) as networks:
        exact, edge = (detector_of(bundle, networks, preset) for preset in ("paper", "edge"))
        exact = exact.under(paper, exact.classes)
        constants = class_models(bundle, "paper")[asked.name]
        edge.inspect(photos[:1], asked.name)  # warm-up of what both plans use; exact warms up on its first batch

        def rounds(photo: U8, full: bool) -> None:
            for _ in range(asked.edge_rounds):
                edge.inspect([photo], asked.name, full=full)

        for number, photo in enumerate(photos):
            slots = slots_of(exact, constants, photo)
            (score, score_map), naive_s, naive_cpu = harness.timed(naive.score, photo, slots)
            (found,), exact_s, exact_cpu = harness.timed(exact.inspect, [photo], asked.name)
            _, edge_s, edge_cpu = harness.timed(rounds, photo, True)
            _, default_s, default_cpu = harness.timed(rounds, photo, False)
            beside: dict[str, float] = {}
            if asked.optimum is not None:
                repaints, seconds, cpu = optimum_repaints(
                    bundle, run, paper, asked.name, photo, slots, asked.optimum, asked.threads
                )
                (score_o, _), distances_s, distances_cpu = harness.timed(naive.score, photo, slots, repaints)
                beside = {
                    "optimum_s": seconds + distances_s,
                    "optimum_cpu_s": cpu + distances_cpu,
                    "optimum_score": score_o,
                    "optimum_score_difference": abs(score_o - found.pred_score),
                }
            rows.append(
                {
                    **beside,
                    "masks": len(slots),
                    "naive_s": naive_s,
                    "exact_s": exact_s,
                    "edge_s": edge_s / asked.edge_rounds,
                    "default_s": default_s / asked.edge_rounds,
                    "naive_cpu_s": naive_cpu,
                    "exact_cpu_s": exact_cpu,
                    "edge_cpu_s": edge_cpu / asked.edge_rounds,
                    "default_cpu_s": default_cpu / asked.edge_rounds,
                    "naive_score": score,
                    "exact_score": found.pred_score,
                    "score_difference": abs(score - found.pred_score),
                    "map_difference": float(np.abs(score_map - found.anomaly_map).max()),
                }
            )
            print(number, rows[-1], flush=True)
            write_json(asked.out, result(rows, asked, bundle))


def result(rows: list[dict[str, float]], asked: argparse.Namespace, bundle: Bundle) -> dict[str, Any]:
    """What the results file says."""
    ways = [way for way in ("naive", "optimum", "exact", "edge", "default") if f"{way}_s" in rows[0]]
    masks = sum(row["masks"] for row in rows) / len(rows)
    all_masks = sum(k * k for k in preset_settings(bundle, "paper").scales) + 1
    found: dict[str, Any] = {}
    for clock, ending in (("wall", "_s"), ("cpu", "_cpu_s")):
        seconds = {way: sum(row[f"{way}{ending}"] for row in rows) / len(rows) for way in ways}
        found[clock] = {"seconds_a_photo": seconds}
        for slow in ways[: ways.index("exact")]:
            found[clock][f"exact_times_faster_than_{slow}"] = seconds[slow] / seconds["exact"]
            # The edge plan stands for all masks, also where a part of them was repainted.
            whole = seconds[slow] / masks * all_masks
            found[clock][f"edge_times_faster_than_{slow}"] = whole / seconds["edge"]
            found[clock][f"default_times_faster_than_{slow}"] = whole / seconds["default"]
    if "optimum" in ways:
        found["largest_score_difference_of_optimum"] = max(row["optimum_score_difference"] for row in rows)
    return {
        "what": "diffusers' pipeline once a mask and LPIPS a pair, beside the exact plan, the edge plan, and what "
        "inspect does of it by default; means of photos",
        "base": bundle.manifest.base.name,
        "size_px": bundle.manifest.sizes.size_px,
        "threads": asked.threads,
        "device": asked.device,
        "masks": masks,
        "masks_of_the_plan": all_masks,
        **found,
        "largest_score_difference": max(row["score_difference"] for row in rows),
        "largest_map_difference": max(row["map_difference"] for row in rows),
        "photos": rows,
        "machine": machine_facts(),
        "versions": versions(),
    }


if __name__ == "__main__":
    main()
