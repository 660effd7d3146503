"""What an inspection box is installed from: the extras, the container's file, the systemd unit."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[1]
DEPLOY = ROOT / "runtime/deploy"


def packages(extra: str) -> str:
    """Requirements of an extra, those of extras that it names among them, a line each."""
    project: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    found: list[str] = []
    waiting = extra.split(",")
    while waiting:
        for requirement in project["optional-dependencies"][waiting.pop()]:
            own = re.match(r"anomalysd-edge\[([\w,-]+)\]", requirement)
            waiting += own.group(1).split(",") if own else []
            found += [] if own else [requirement]
    return "\n".join(found)


def test_a_box_with_only_a_driver_gets_cuda_from_the_extra() -> None:
    for extra in ("gpu", "gpu-cuda12"):
        (first, *_) = packages(extra).splitlines()
        assert first.startswith("onnxruntime-gpu[cuda,cudnn]"), "no CUDA, and ONNX Runtime goes to the CPU"
        assert "<1." in first, "unbounded, pip looks for a wheel that the newest releases do not have"
    assert "tensorrt-cu13>=10.13,<11" in packages("ort-tensorrt"), "its provider links libnvinfer.so.10"


def test_jetsons_get_cuda_bindings_of_their_drivers_major_version() -> None:
    assert "cuda-python==12.6.2.post1" in packages("jetson6")
    assert "cuda-bindings==13.0.*" in packages("jetson7")
    page = (ROOT / "docs/jetson.md").read_text(encoding="utf-8")
    assert "cuda-bindings==12.6" not in page, "there is no such release"
    assert {"cpu,jetson6", "cpu,jetson7"} <= set(re.findall(r"\[([\w,]+)\]", page))


@pytest.mark.parametrize("extra", ["cpu", "gpu", "rtx", "tensorrt", "jetson6", "jetson7"])
def test_every_image_can_open_a_backend(extra: str) -> None:
    """The Containerfile's own shell commands, with an echo in place of pip."""
    text = (DEPLOY / "Containerfile").read_text(encoding="utf-8").replace("\\\n", "")
    (step,) = [line for line in text.splitlines() if line.startswith("RUN ") and "pip install" in line]
    command = step.removeprefix("RUN ").replace("/opt/sd-edge/bin/pip", "echo").partition("&& rm ")[0]
    shell = {"EXTRA": extra, "PATH": "/usr/bin:/bin"}
    done = subprocess.run(["sh", "-ec", command], env=shell, capture_output=True, text=True, check=True)
    asked = re.search(r"\.\[([\w,-]+)\]", done.stdout)
    assert asked is not None, done.stdout
    wanted = packages(asked.group(1))
    assert "onnxruntime" in wanted
    assert "fastapi" in wanted
    if extra not in ("cpu", "gpu"):
        assert re.search(r"^cuda-(bindings|python)", wanted, re.MULTILINE), "engines cannot be run"
    pinned = "-c constraints.txt" in done.stdout
    assert not (pinned and extra.startswith("jetson")), (
        "constraints.txt holds CUDA bindings newer than JetPack's driver"
    )


def test_the_image_says_how_its_healthcheck_is_kept() -> None:
    text = (DEPLOY / "Containerfile").read_text(encoding="utf-8")
    assert "HEALTHCHECK" in text
    assert all("--format docker" in line for line in text.splitlines() if "podman build" in line)
    assert "import ensurepip" in text, "Debian's venv without ensurepip makes no environment"


def test_the_unit_leaves_the_gpu_open() -> None:
    text = (DEPLOY / "sd-edge.service").read_text(encoding="utf-8")
    settings = dict(line.split("=", 1) for line in text.splitlines() if "=" in line and not line.startswith("#"))
    assert not {"ProtectClock", "PrivateDevices", "DevicePolicy", "DeviceAllow"} & set(settings)
    assert "@clock" in settings["SystemCallFilter"]
    assert settings["CapabilityBoundingSet"] == ""
    # NoNewPrivileges keeps CUDA from calling the setuid program that makes /dev/nvidia-uvm: the unit calls it, outside.
    assert settings["NoNewPrivileges"] == "yes"
    assert settings["ExecStartPre"].startswith("-+/usr/bin/nvidia-modprobe")
    assert settings["Environment"].partition("=")[2].startswith("/var/cache/" + settings["CacheDirectory"])


def test_systemd_takes_the_unit(tmp_path: Path) -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("no systemd-analyze here: the unit was not checked by it")
    unit = (DEPLOY / "sd-edge.service").read_text(encoding="utf-8")
    (tmp_path / "sd-edge.service").write_text(unit.replace("/opt/sd-edge/bin/sd-edge", "/bin/true"), encoding="utf-8")
    command = ["systemd-analyze", "verify", "--man=no", str(tmp_path / "sd-edge.service")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
