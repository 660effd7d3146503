"""What a figure was measured on: processor, memory, versions, clocks; and energy where the box tells it."""

from __future__ import annotations

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
        "versions": _versions(),
    }
    gpu = _nvidia("name,driver_version,memory.total,clocks.sm,clocks.mem,clocks.max.sm,power.limit")
    if gpu:
        facts["gpu"] = gpu
    return facts


def peak_rss_bytes() -> int:
    """Largest resident memory of this process so far."""
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
    """Joules of a block: the CPU package's own counter, the GPU's or the Jetson's power sampled and summed up.

    `joules` holds what could be read, by source; empty where the box tells nothing.
    """

    def __init__(self) -> None:
        self.joules: dict[str, float] = {}
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._process: subprocess.Popen[str] | None = None

    def __enter__(self) -> EnergyMeter:
        self._rapl = _rapl_joules()
        if _nvidia("power.draw").get("power.draw", "").replace(".", "").isdigit():
            self._thread = threading.Thread(target=self._sample_gpu, daemon=True)
        elif shutil.which("tegrastats"):
            command = ["tegrastats", "--interval", str(round(_SAMPLE_S * 1000))]
            self._process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
            self._thread = threading.Thread(target=self._read_tegrastats, daemon=True)
        if self._thread:
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        if self._process:
            self._process.terminate()
        if self._thread:
            self._thread.join(timeout=5)
        after = _rapl_joules()
        # The counter wraps; a difference below zero says nothing.
        if self._rapl is not None and after is not None and after >= self._rapl:
            self.joules["cpu package"] = after - self._rapl

    def _sample_gpu(self) -> None:
        last = time.monotonic()
        while not self._stop.wait(_SAMPLE_S):
            watts, now = _nvidia("power.draw").get("power.draw", ""), time.monotonic()
            if watts.replace(".", "").isdigit():
                self.joules["gpu"] = self.joules.get("gpu", 0.0) + float(watts) * (now - last)
            last = now

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


def board_milliwatts(line: str) -> int | None:
    """Power of the whole board in a line of tegrastats, as 'VDD_IN 4567mW/4321mW' (now/average); None without it."""
    found = re.search(r"\b(?:VDD_IN|POM_5V_IN|VIN_SYS_5V0)\s+(\d+)(?:mW)?/", line)
    return int(found.group(1)) if found else None


def _versions() -> dict[str, str]:
    found = {}
    for package in PACKAGES:
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
