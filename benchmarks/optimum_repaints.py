"""optimum-onnx's ORTStableDiffusionInpaintPipeline, once per mask: a process of its own, started by naive.py --optimum.

    python -m pip install --target SITE --no-deps optimum-onnx==0.1.0 optimum==2.1.0 transformers==4.57.6 \\
        tokenizers==0.22.2 huggingface_hub==0.36.2 diffusers==0.35.2

optimum-onnx asks for older releases of transformers, huggingface_hub and diffusers than this project does, so it lives
in a folder of its own and this file imports nothing of ours. It runs the bundle's own graphs: their VAEs scale latents
inside, so the configurations beside them say 1.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

RANDN = "diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion_inpaint.randn_tensor"


def open_pipeline(folder: Path, threads: int) -> Any:
    """The pipeline over FOLDER/{unet,vae_encoder,vae_decoder}/model.onnx with a config.json beside each."""
    import onnxruntime as ort
    from diffusers import DDIMScheduler
    from optimum.onnxruntime import ORTStableDiffusionInpaintPipeline

    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    sessions = {
        f"{name}_session": ort.InferenceSession(
            str(folder / name / "model.onnx"), options, providers=["CPUExecutionProvider"]
        )
        for name in ("unet", "vae_encoder", "vae_decoder")
    }
    scheduler = DDIMScheduler.from_config(json.loads((folder / "scheduler.json").read_text(encoding="utf-8")))
    pipeline = ORTStableDiffusionInpaintPipeline(
        **sessions, scheduler=scheduler, tokenizer=None, safety_checker=None, image_encoder=None,
        requires_safety_checker=False,
    )  # fmt: skip
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def main() -> None:
    """FOLDER/job.npz -> FOLDER/done.npz with the repaints (n,3,S,S) in [-1,1] and the seconds of all calls."""
    import torch

    folder = Path(sys.argv[1])
    job = np.load(folder / "job.npz")
    settings = json.loads((folder / "settings.json").read_text(encoding="utf-8"))
    torch.set_num_threads(settings["threads"])
    pipeline = open_pipeline(folder, settings["threads"])
    states = torch.from_numpy(job["states"][None])
    photo = torch.from_numpy((job["pixels"] + 1) / 2)
    side = photo.shape[-1]
    images, spent, spent_cpu = [], 0.0, 0.0
    for number, (mask, noise) in enumerate(zip(job["masks"], job["noises"], strict=True)):
        with mock.patch(RANDN, return_value=torch.from_numpy(noise[None])):
            began, cpu = time.perf_counter(), time.process_time()
            done = pipeline(
                prompt_embeds=states,
                image=photo,
                mask_image=torch.from_numpy(mask[None, None].astype(np.float32)),
                height=side,
                width=side,
                strength=settings["strength"],
                num_inference_steps=settings["steps"],
                guidance_scale=1.0,
                output_type="pt",
            ).images
            if number:  # the first call warms up: the others' mean stands for it
                spent += time.perf_counter() - began
                spent_cpu += time.process_time() - cpu
        images.append(np.asarray(done, dtype=np.float32)[0] * 2 - 1)
    scale = len(images) / max(1, len(images) - 1)
    np.savez(folder / "done.npz", images=np.stack(images), seconds=spent * scale, cpu_seconds=spent_cpu * scale)


if __name__ == "__main__":
    main()
