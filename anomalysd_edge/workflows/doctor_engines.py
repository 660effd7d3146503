"""Which engines this machine can build and run, and why not the rest. Asks the driver itself, without CUDA packages."""

from __future__ import annotations

import ctypes
import importlib
import importlib.metadata
import importlib.util
from dataclasses import dataclass
from pathlib import Path

BUILD_PACKAGES = ("onnx", "polygraphy")
TEGRA = Path("/etc/nv_tegra_release")
"""There on a Jetson; its first line names the release of Jetson Linux."""
RTX_FROM, PORTABLE_FROM = (7, 5), (8, 0)
"""Compute capabilities: Turing is the oldest that TensorRT for RTX runs on, Ampere for portable engines."""


@dataclass(frozen=True)
class Finding:
    """One capability of this machine."""

    what: str
    """The capability, named after the verb or the backend."""
    able: bool
    """Whether it is there."""
    because: str
    """Versions where it is; what is missing and how to get it where it is not."""


def examine() -> list[Finding]:
    """GPU, then building and running with each of the two libraries."""
    gpu = _gpu()
    return [_gpu_finding(gpu), _rtx_build(), _rtx_run(gpu), _classic_build(gpu), _classic_run(gpu)]


def no_cuda() -> str | None:
    """Why there is no usable NVIDIA driver, or None where there is one."""
    found = _gpu()
    return found if isinstance(found, str) else None


def _gpu() -> tuple[str, tuple[int, int], int] | str:
    """(name, compute capability, driver's CUDA version) of the first GPU, or why there is none."""
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


def _gpu_finding(gpu: tuple[str, tuple[int, int], int] | str) -> Finding:
    if isinstance(gpu, str):
        return Finding("NVIDIA GPU", False, gpu)
    name, (major, minor), version = gpu
    jetson = f", {TEGRA.read_text().splitlines()[0].strip('# ')}" if TEGRA.is_file() else ""
    return Finding(
        "NVIDIA GPU", True, f"{name}, sm{major}{minor}, CUDA {version // 1000}.{version % 1000 // 10}{jetson}"
    )


def _rtx_build() -> Finding:
    what = "build for TensorRT RTX"
    why = _missing("tensorrt_rtx", "rtx", BUILD_PACKAGES)
    if why:
        return Finding(what, False, why)
    try:
        library = importlib.import_module("tensorrt_rtx")
    except (ImportError, OSError, RuntimeError) as error:
        return Finding(what, False, f"tensorrt_rtx is installed but does not load: {error}")
    known = sorted((n for n in dir(library.ComputeCapability) if n.startswith("SM")), key=lambda n: int(n[2:]))
    return Finding(what, True, f"{library.__version__}, for portable, {', '.join(known).lower()}; no GPU needed")


def _rtx_run(gpu: tuple[str, tuple[int, int], int] | str) -> Finding:
    what = "run TensorRT RTX"
    why = _missing("tensorrt_rtx", "rtx", ("cuda.bindings",))
    if why or isinstance(gpu, str):
        return Finding(what, False, why or str(gpu))
    capability = gpu[1]
    if capability < RTX_FROM:
        return Finding(what, False, f"{gpu[0]} is sm{capability[0]}{capability[1]}, older than sm75")
    if TEGRA.is_file():
        return Finding(what, False, "a Jetson runs classic TensorRT, of JetPack; TensorRT for RTX has no build for it")
    portable = " and portable ones" if capability >= PORTABLE_FROM else ""
    return Finding(what, True, f"engines for sm{capability[0]}{capability[1]}{portable}")


def _classic_build(gpu: tuple[str, tuple[int, int], int] | str) -> Finding:
    what = "build for TensorRT"
    why = _missing("tensorrt", "tensorrt", BUILD_PACKAGES)
    if why or isinstance(gpu, str):
        return Finding(what, False, why or f"it builds on the GPU itself, and there is none: {gpu}")
    return Finding(what, True, f"{_version('tensorrt')}, for this GPU alone")


def _classic_run(gpu: tuple[str, tuple[int, int], int] | str) -> Finding:
    what = "run TensorRT"
    why = _missing("tensorrt", "tensorrt", ("cuda.bindings",))
    if why or isinstance(gpu, str):
        return Finding(what, False, why or str(gpu))
    return Finding(what, True, f"{_version('tensorrt')}, engines built here")


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
    return str(getattr(importlib.import_module(module), "__version__", "of unknown version"))
