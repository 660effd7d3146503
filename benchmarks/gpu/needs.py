"""What a subcommand needs of the machine, and the sentence that says what is missing."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterable

from benchmarks.gpu.claims import Kit


def first_missing(kit: Kit, names: Iterable[str]) -> str | None:
    """Why the first of `names` (keys of NEEDS) is not to be had; None where all are there."""
    for name in names:
        why = NEEDS[name](kit)
        if why:
            return why
    return None


def _torch(kit: Kit) -> str | None:
    if not _installed("torch"):
        return "torch is not installed"
    if kit.rehearsal:
        return None
    import torch

    if not torch.cuda.is_available():
        return f"torch {torch.__version__} sees no CUDA GPU"
    return None


def _bindings(kit: Kit) -> str | None:
    if kit.rehearsal:
        return None
    return None if _installed("cuda.bindings") else "cuda-bindings is not installed (it comes with torch for CUDA)"


def _training(_kit: Kit) -> str | None:
    absent = [name for name in ("diffusers", "transformers", "peft", "safetensors") if not _installed(name)]
    return f"not installed: {', '.join(absent)}" if absent else None


def _export(_kit: Kit) -> str | None:
    absent = [name for name in ("onnx", "onnxscript") if not _installed(name)]
    return f"not installed: {', '.join(absent)}" if absent else None


def missing_provider(kit: Kit) -> str | None:
    """Why ONNX Runtime has no provider for the kit's device; None where it lists one, which may still not work."""
    if not _installed("onnxruntime"):
        return "onnxruntime-gpu is not installed"
    from anomalysd_runtime.onnx.providers import PROVIDERS, built_in

    if PROVIDERS[kit.device] not in built_in():
        return f"this onnxruntime has only {', '.join(built_in())}: install onnxruntime-gpu in its place"
    return None


def _onnxruntime(kit: Kit) -> str | None:
    why = missing_provider(kit)
    if why:
        return why
    from anomalysd_runtime.onnx.sessions import trouble

    return trouble(kit.device)


def _rtx(kit: Kit) -> str | None:
    if kit.rehearsal:
        return "engines run on a GPU alone"
    absent = [name for name in ("tensorrt_rtx", "polygraphy", "onnx") if not _installed(name)]
    return f"not installed: {', '.join(absent)}" if absent else None


def _bundle(kit: Kit) -> str | None:
    if (kit.work / "bundle/manifest.json").is_file():
        return None
    why = first_missing(kit, ("torch", "training", "export"))
    return why and f"the folder {kit.work.name} holds no bundle, and it cannot be made here: {why}"


def _installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # the package around it is missing
        return False


NEEDS: dict[str, Callable[[Kit], str | None]] = {
    "torch": _torch,
    "cuda-bindings": _bindings,
    "training": _training,
    "export": _export,
    "onnxruntime-gpu": _onnxruntime,
    "tensorrt-rtx": _rtx,
    "bundle": _bundle,
}
"""By name: None where it is there, else what is missing."""
