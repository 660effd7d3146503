"""What an inspection box runs: Python 3.10's grammar, and packages that are there without torch.

Who may import whom is held by import-linter (pyproject.toml); here Python is started with packages blocked, which also
sees what is imported when, and by other packages.
"""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from tests.support.command import ROOT
from tests.support.small_graphs import small_bundle

EDGE, EXPORT, RUNTIME = ROOT / "anomalysd_edge", ROOT / "export/anomalysd_export", ROOT / "runtime/anomalysd_runtime"
TRAINING = {
    "torch", "torchvision", "diffusers", "transformers", "peft", "accelerate", "onnx", "onnxscript", "scipy", "sklearn",
}  # fmt: skip
"""Packages of training and export."""
ON_DEMAND = {"ray", "fsspec", "triton_python_backend_utils"}
"""Packages of extras that are imported where they are used."""


def sources(folder: Path, without: Path | None = None) -> list[Path]:
    found = [file for file in sorted(folder.rglob("*.py")) if without is None or not file.is_relative_to(without)]
    assert found, f"no sources in {folder}"
    return found


INSPECTION = sources(EDGE, EDGE / "training")
BOX = [*INSPECTION, *sources(RUNTIME), *sources(EXPORT / "engines")]
"""What a Jetson with Python 3.10 runs: inspection, and building engines on the device."""


@pytest.mark.parametrize("file", BOX, ids=lambda file: f"{file.parent.name}.{file.stem}")
def test_the_box_speaks_python_3_10(file: Path) -> None:
    assert ast.parse(file.read_text(encoding="utf-8"), str(file), feature_version=(3, 10)).body


def test_python_3_10_itself_compiles_the_box() -> None:
    # Where pyenv has it, the name on the path may be a shim that refuses.
    places = [shutil.which("python3.10"), *map(str, Path.home().glob(".pyenv/versions/3.10*/bin/python3.10"))]
    works = (p for p in places if p and subprocess.run([p, "-c", ""], capture_output=True, check=False).returncode == 0)
    python = next(works, None)
    if python is None:
        pytest.skip("no python3.10 here: its grammar was checked by ast alone")
    code = "import sys; [compile(open(f, encoding='utf-8').read(), f, 'exec') for f in sys.argv[1:]]"
    done = subprocess.run([python, "-c", code, *map(str, BOX)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


GUARD = """
import sys
from importlib.abc import MetaPathFinder

class Blocked(MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in BLOCKED:
            raise ModuleNotFoundError(f"No module named {name!r} (blocked by the test)", name=name)
        return None

sys.meta_path.insert(0, Blocked())
sys.path[:0] = PATHS
"""


def start(code: str, blocked: set[str]) -> subprocess.CompletedProcess[str]:
    """Run `code` in a fresh Python in which `blocked` cannot be imported."""
    paths = [str(ROOT), str(ROOT / "export"), str(ROOT / "runtime")]
    setup = f"BLOCKED, PATHS = {blocked!r}, {paths!r}\n{GUARD}"
    return subprocess.run(
        [sys.executable, "-c", setup + code], capture_output=True, text=True, check=False, timeout=120
    )


def import_all(base: Path, files: list[Path], blocked: set[str]) -> None:
    """Import the modules of `files` below `base` in one fresh Python."""
    parts = [file.relative_to(base).with_suffix("").parts for file in files if file.stem != "__main__"]
    names = [".".join(p[:-1] if p[-1] == "__init__" else p) for p in parts]
    code = "import importlib\n" + "".join(f"importlib.import_module({name!r})\n" for name in names)
    done = start(code + f"print(sum(name in sys.modules for name in {names!r}))", blocked)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) == len(names) > 0


def lean_install() -> set[str]:
    """Distributions that come with `pip install anomalysd-edge` without extras."""
    found: set[str] = set()
    waiting = ["anomalysd-edge"]
    while waiting:
        name = re.sub(r"[-_.]+", "-", waiting.pop()).lower()
        if name in found:
            continue
        found.add(name)
        needed = map(Requirement, metadata.requires(name) or [])
        waiting += [r.name for r in needed if r.marker is None or r.marker.evaluate({"extra": ""})]
    return found


def test_inspection_imports_with_the_lean_install_alone() -> None:
    lean = lean_install()
    assert {"numpy", "pillow", "typer"} <= lean
    assert "torch" not in lean
    installed = metadata.packages_distributions()
    extras = {top for top, dists in installed.items() if not {re.sub(r"[-_.]+", "-", d).lower() for d in dists} & lean}
    assert {"torch", "onnxruntime", "fastapi", "cryptography"} <= extras
    import_all(ROOT, INSPECTION, extras | TRAINING | ON_DEMAND)


def test_the_runtime_imports_without_torch() -> None:
    import_all(ROOT / "runtime", sources(RUNTIME), TRAINING | ON_DEMAND)


def test_building_engines_imports_without_torch() -> None:
    """A Jetson builds its engines without the training half."""
    import_all(ROOT / "export", sources(EXPORT / "engines"), {"torch", "diffusers", "transformers", "peft"})


def test_the_block_blocks() -> None:
    done = start("import anomalysd_edge.training.models.base", TRAINING)
    assert done.returncode == 1
    assert "blocked by the test" in done.stderr


def test_without_onnxruntime_the_extra_is_named() -> None:
    code = """
from anomalysd_edge.errors import MissingExtra
try:
    import anomalysd_runtime.onnx.networks
except MissingExtra as error:
    print(error)
"""
    done = start(code, {"onnxruntime"})
    assert done.returncode == 0, done.stderr
    assert "'onnxruntime'" in done.stdout
    assert "anomalysd-edge[cpu]" in done.stdout


def test_an_inspection_without_torch(tmp_path: Path) -> None:
    """From a bundle to a verdict with every package of training blocked."""
    small_bundle(tmp_path / "bundle")
    code = f"""
import numpy as np
from pathlib import Path
from anomalysd_runtime.loading import open_detector
detector = open_detector(Path({str(tmp_path / "bundle")!r}), threads=1)
(answer,) = detector.inspect([np.zeros((20, 20, 3), np.uint8)], "bottle")
print(answer.pred_label in (0, 1), np.isfinite(answer.pred_score))
"""
    done = start(code, TRAINING)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["True", "True"]
