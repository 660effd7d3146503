"""A box tells nobody anything: no identifier is written, no name looked up, no foreign socket opened."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from anomalysd_edge.bundle.reader import Bundle
from tests.support.command import ROOT
from tests.support.serving import png

SWITCHES = ("ORT_DISABLE_TELEMETRY", "RAY_USAGE_STATS_ENABLED", "HF_HUB_DISABLE_TELEMETRY", "DISABLE_TELEMETRY")
SPY = """
import socket, sys
real = socket.socket.connect
def connect(self, address):
    if self.family in (socket.AF_INET, socket.AF_INET6):
        print("CONNECTS", address, file=sys.stderr)
    return real(self, address)
def look_up(host, *rest, **more):
    print("LOOKS UP", host, file=sys.stderr)
    raise OSError("no names here")
socket.socket.connect = connect
socket.getaddrinfo = look_up
"""


def clean_environment(home: Path) -> dict[str, str]:
    """This process's own without the switches, so that the package itself has to set them; and a fresh HOME."""
    kept = {name: value for name, value in os.environ.items() if name not in SWITCHES and not name.startswith("XDG_")}
    paths = [str(ROOT), str(ROOT / "export"), str(ROOT / "runtime")]
    return {**kept, "HOME": str(home), "PYTHONPATH": os.pathsep.join(paths)}


@pytest.mark.parametrize(
    "code",
    [
        "import anomalysd_edge",
        "import anomalysd_runtime.loading",
        "import anomalysd_runtime.distributed.triton_model",
        "import anomalysd_export.engines.building",
    ],
)
def test_every_way_in_switches_off_what_dependencies_report(code: str, tmp_path: Path) -> None:
    shown = "; import os; print([os.environ.get(name) for name in " + repr(SWITCHES) + "])"
    done = subprocess.run(
        [sys.executable, "-c", code + shown],
        capture_output=True,
        text=True,
        check=True,
        env=clean_environment(tmp_path),
    )
    assert done.stdout.strip() == "['1', '0', '1', '1']"


def test_an_inspection_writes_nothing_outside_its_folders_and_opens_no_socket(bundle: Bundle, tmp_path: Path) -> None:
    home, work = tmp_path / "home", tmp_path / "work"
    home.mkdir()
    work.mkdir()
    (work / "photo.png").write_bytes(png(1))
    command = f"sys.argv = ['sd-edge', 'inspect', {str(bundle.path)!r}, 'photo.png', '--out', 'results']"
    code = f"{SPY}\n{command}\nfrom anomalysd_edge.cli.main import main\nmain()"
    before = {path: path.stat().st_mtime_ns for path in bundle.path.rglob("*")}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=work, env=clean_environment(home)
    )
    assert done.returncode == 0, done.stderr
    assert "CONNECTS" not in done.stderr
    assert "LOOKS UP" not in done.stderr
    assert list(home.rglob("*")) == [], "nothing is left in the user's home"
    assert {path: path.stat().st_mtime_ns for path in bundle.path.rglob("*")} == before
    assert sorted(path.name for path in work.iterdir()) == ["photo.png", "results"]
