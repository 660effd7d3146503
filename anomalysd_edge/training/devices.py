"""torch's devices: which one a process takes, and what float32 and autocast mean there."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from anomalysd_edge.errors import BackendError
from anomalysd_edge.training.settings import TrainSettings


def check_training_device(device: str) -> None:
    """Raise BackendError where torch has no such device; with several GPUs, take this process's own from here on.

    LOCAL_RANK is the launcher's (torchrun, accelerate). Without it every process would open a context on GPU 0 too.
    """
    if device != "cuda":
        return
    if not torch.cuda.is_available():
        raise BackendError(f"device cuda was asked for, but torch {torch.__version__} sees none; set device to cpu")
    rank, count = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
    if rank >= count:
        raise BackendError(
            f"the process of rank {rank} has no GPU: torch sees {count}; start as many processes as GPUs"
        )
    torch.cuda.set_device(rank)


@contextmanager
def plain_float32(device: str) -> Iterator[None]:
    """float32 on a GPU that is float32, as the CPU's: torch's own default rounds what convolutions read to TF32.

    cuDNN's algorithms are then also those that add in the same order every time.
    """
    cudnn, products = torch.backends.cudnn, torch.backends.cuda.matmul
    before = (cudnn.allow_tf32, products.allow_tf32, cudnn.deterministic, cudnn.benchmark)
    if not device.startswith("cuda"):
        yield
        return
    cudnn.allow_tf32, products.allow_tf32, cudnn.deterministic, cudnn.benchmark = False, False, True, False
    try:
        yield
    finally:
        cudnn.allow_tf32, products.allow_tf32, cudnn.deterministic, cudnn.benchmark = before


def autocast_dtype(settings: TrainSettings) -> torch.dtype | None:
    """The dtype of autocast, None for float32; "auto" is bfloat16 if the hardware computes in it."""
    if settings.autocast != "auto":
        return {"bf16": torch.bfloat16, "fp16": torch.float16, "none": None}[settings.autocast]
    if settings.device == "cuda":
        # Turing emulates it, slower than float32; that counts as support unless one asks.
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else None
    try:
        return torch.bfloat16 if "avx512_bf16" in Path("/proc/cpuinfo").read_text() else None
    except OSError:
        return None  # not Linux: the CPU's instruction set is unknown
