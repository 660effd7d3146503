"""What a figure was measured on: processor, memory, versions, clocks; and energy where the box tells it."""

from __future__ import annotations

import ctypes
import importlib.metadata
import os
import platform
import re
import resource
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from anomalysd_edge.core.threads import cores

PACKAGES = ("anomalysd-edge", "numpy", "pillow", "onnxruntime", "onnxruntime-gpu", "tensorrt-rtx-cu13", "torch")
_RAPL = Path("/sys/class/powercap/intel-rapl:0/energy_uj")
_SAMPLE_S = 0.2


def machine_facts() -> dict[str, Any]:
    """Plain values for a results file. Nothing names the host or a path of it."""
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 0
    facts: dict[str, Any] = {
        "processor": _cpu_model(),
        "cores": cores(),
        "memory_gib": round(memory / 2**30, 1),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "clock_mhz": _cpu_clock(),
        "load_average": [round(v, 2) for v in os.getloadavg()] if hasattr(os, "getloadavg") else None,
        "versions": package_versions(PACKAGES),
    }
    gpu = _nvidia("name,driver_version,memory.total,clocks.sm,clocks.mem,clocks.max.sm,power.limit")
    if gpu:
        facts["gpu"] = gpu
    return facts


def peak_rss_bytes() -> int:
    """Largest resident memory of this program so far. On Linux ru_maxrss will not do: it begins with the parent's."""
    status = Path("/proc/self/status")
    for line in status.read_text(encoding="ascii").splitlines() if status.exists() else ():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def gpu_memory_bytes() -> int | None:
    """Device memory that this process holds, as nvidia-smi tells it; None where it does not."""
    query = ["--query-compute-apps=pid,used_memory", "--format=csv,noheader,nounits"]
    for line in _smi(query):
        pid, _, used = line.partition(",")
        if pid.strip() == str(os.getpid()) and used.strip().isdigit():
            return int(used) << 20
    return None


class EnergyMeter:
    """Joules of a block: the counters of the CPU package and of the GPU, or a Jetson's power sampled and summed up.

    `joules` holds what could be read, by source; empty where the box tells nothing.
    """

    def __init__(self) -> None:
        self.joules: dict[str, float] = {}
        self._before: dict[str, float] = {}
        self._thread: threading.Thread | None = None
        self._process: subprocess.Popen[str] | None = None

    def __enter__(self) -> EnergyMeter:
        self._gpu = GpuEnergy()
        if not self._gpu.able and shutil.which("tegrastats"):
            command = ["tegrastats", "--interval", str(round(_SAMPLE_S * 1000))]
            self._process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
            self._thread = threading.Thread(target=self._read_tegrastats, daemon=True)
            self._thread.start()
        self._before = self._counters()
        return self

    def __exit__(self, *_: object) -> None:
        after = self._counters()
        if self._process:
            self._process.terminate()
        if self._thread:
            self._thread.join(timeout=5)
        for source, joules in after.items():
            # A counter wraps; a difference below zero says nothing.
            if source in self._before and joules >= self._before[source]:
                self.joules[source] = joules - self._before[source]

    def _counters(self) -> dict[str, float]:
        found = {"cpu package": _rapl_joules(), "gpu": self._gpu.joules()}
        return {source: joules for source, joules in found.items() if joules is not None}

    def _read_tegrastats(self) -> None:
        assert self._process is not None
        assert self._process.stdout is not None
        last = time.monotonic()
        for line in self._process.stdout:
            now = time.monotonic()
            milliwatts = board_milliwatts(line)
            if milliwatts is not None:
                self.joules["board"] = self.joules.get("board", 0.0) + milliwatts / 1e3 * (now - last)
            last = now


class GpuEnergy:
    """The first GPU's own counter since the driver was loaded, through NVML (Volta and newer).

    Read twice a block: asking nvidia-smi for the power several times a second starts a process each time, and the
    processes show in the very latencies that are measured.
    """

    def __init__(self) -> None:
        self._nvml: Any = None
        self._device = ctypes.c_void_p()
        try:
            nvml = ctypes.CDLL("libnvidia-ml.so.1")
        except OSError:
            return
        if nvml.nvmlInit_v2() == 0 and nvml.nvmlDeviceGetHandleByIndex_v2(0, ctypes.byref(self._device)) == 0:
            self._nvml = nvml

    @property
    def able(self) -> bool:
        """Whether there is a counter to read."""
        return self.joules() is not None

    def joules(self) -> float | None:
        """Its value; None where there is no GPU or it has no counter."""
        millijoules = ctypes.c_ulonglong(0)
        if self._nvml is None:
            return None
        code = self._nvml.nvmlDeviceGetTotalEnergyConsumption(self._device, ctypes.byref(millijoules))
        return millijoules.value / 1e3 if code == 0 else None


_WHOLE_RAILS = ("VDD_IN", "POM_5V_IN", "VIN")
"""Rails of a whole board, by module: Orin NX and Nano, TX2 and Nano, Thor."""
_AGX_RAILS = ("VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0")
"""AGX Orin has none of the whole; these three are side by side. VDDQ_VDD2_1V8AO is fed by the last of them."""


def board_milliwatts(line: str) -> int | None:
    """Power of the whole board in a line of tegrastats, as 'VDD_IN 4567mW/4321mW' (now/average); None without it."""
    rails = {name: int(now) for name, now in re.findall(r"\b(V\w+|POM_5V_IN)\s+(\d+)(?:mW)?/", line)}
    for name in _WHOLE_RAILS:
        if name in rails:
            return rails[name]
    return sum(rails[name] for name in _AGX_RAILS) if set(_AGX_RAILS) <= set(rails) else None


def package_versions(packages: Iterable[str]) -> dict[str, str]:
    """The installed versions of `packages`; those that are not installed are left out."""
    found = {}
    for package in packages:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _cpu_model() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return platform.processor() or platform.machine()
    found = re.search(r"^(?:model name|Model|Hardware)\s*:\s*(.+)$", text, re.MULTILINE)
    return found.group(1).strip() if found else platform.machine()


def _cpu_clock() -> int | None:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return None
    found = [float(v) for v in re.findall(r"^cpu MHz\s*:\s*([\d.]+)", text, re.MULTILINE)]
    return round(max(found)) if found else None


def _rapl_joules() -> float | None:
    try:
        return int(_RAPL.read_text()) / 1e6
    except (OSError, ValueError):
        return None


def _nvidia(fields: str) -> dict[str, str]:
    lines = _smi([f"--query-gpu={fields}", "--format=csv,noheader,nounits"])
    return dict(zip(fields.split(","), (v.strip() for v in lines[0].split(",")), strict=False)) if lines else {}


def _smi(arguments: list[str]) -> list[str]:
    program = shutil.which("nvidia-smi")
    if program is None:
        return []
    try:
        done = subprocess.run([program, *arguments], capture_output=True, text=True, check=False, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return []
    return [line for line in done.stdout.splitlines() if line.strip()] if done.returncode == 0 else []
