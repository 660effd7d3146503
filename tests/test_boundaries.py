"""The doors between the rooms: who may import what, seen in the sources and by starting Python with doors locked."""

from __future__ import annotations

import ast
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

HOUSE = Path(__file__).parent.parent
ROOT, EXPORT, RUNTIME = (
    HOUSE / "anomalysd_edge",
    HOUSE / "export" / "anomalysd_export",
    HOUSE / "runtime" / "anomalysd_runtime",
)
TRAINING = ROOT / "training"
PORTERS = {
    "cli.py",
    "workflow.py",
    "demo.py",
    "doctor.py",
    "building.py",
    "opening.py",
    "verifying.py",
    "recalibrating.py",
    "serving_verbs.py",
    "training_verbs.py",
    "adding.py",
    "fleet_verbs.py",
    "cluster_workflow.py",
    "bench_verbs.py",
}
"""Modules of the root that open the other rooms, inside functions only."""

HEAVY = (
    "torch",
    "torchvision",
    "diffusers",
    "transformers",
    "peft",
    "accelerate",
    "onnx",
    "onnxscript",
    "scipy",
    "sklearn",
)
ROOT_MAY = {"numpy", "PIL", "safetensors", "threadpoolctl", "tomli", "typer", "click", "rich", "anomalysd_edge"}
"""What a root module may import while it is imported; typer and rich are the command line's."""


def sources(folder: Path, without: Path | None = None) -> list[Path]:
    found = [file for file in sorted(folder.rglob("*.py")) if without is None or not file.is_relative_to(without)]
    assert found, f"no sources in {folder}"
    return found


def root_sources() -> list[Path]:
    return sources(ROOT, TRAINING)


def imports(tree: ast.AST) -> Iterator[str]:
    """Full names of the imported modules, wherever the statement stands, `from a import b` as a.b."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (entry.name for entry in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports hide which room they reach"
            yield from (f"{node.module}.{entry.name}" for entry in node.names)


def for_types_only(node: ast.stmt) -> bool:
    return isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)


def at_import_time(tree: ast.Module) -> Iterator[str]:
    """As `imports`, but only what runs when the module is imported."""

    def visible(node: ast.AST) -> Iterator[ast.AST]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
                continue
            if isinstance(child, ast.stmt) and for_types_only(child):
                continue
            yield child
            yield from visible(child)

    for node in visible(tree):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            yield from imports(ast.Module([node], []))


def reaches(name: str, *rooms: str) -> bool:
    return any(name == room or name.startswith(f"{room}.") for room in rooms)


def parsed(file: Path) -> ast.Module:
    return ast.parse(file.read_text(encoding="utf-8"), str(file), feature_version=(3, 10))


BOX = [*root_sources(), *sources(RUNTIME), *sources(EXPORT / "engines")]
"""What a Jetson with Python 3.10 runs: inspection, and building engines on the device."""


@pytest.mark.parametrize("file", BOX, ids=lambda file: f"{file.parent.name}.{file.stem}")
def test_the_box_speaks_python_3_10(file: Path) -> None:
    assert parsed(file).body


def test_python_3_10_itself_compiles_the_box(tmp_path: Path) -> None:
    # Where pyenv has it, the name on the path may be a shim that refuses.
    places = [shutil.which("python3.10"), *map(str, Path.home().glob(".pyenv/versions/3.10*/bin/python3.10"))]
    works = (p for p in places if p and subprocess.run([p, "-c", ""], capture_output=True, check=False).returncode == 0)
    python = next(works, None)
    if python is None:
        pytest.skip("no python3.10 here: its grammar was checked by ast alone")
    code = "import sys; [compile(open(f, encoding='utf-8').read(), f, 'exec') for f in sys.argv[1:]]"
    done = subprocess.run([python, "-c", code, *map(str, BOX)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("file", root_sources(), ids=lambda file: file.stem)
def test_the_root_needs_numpy_and_pillow(file: Path) -> None:
    tree = parsed(file)
    for name in at_import_time(tree):
        top = name.partition(".")[0]
        assert top in ROOT_MAY or top in sys.stdlib_module_names, f"{file.name} imports {name}"
        assert not reaches(name, "anomalysd_edge.training"), f"{file.name} imports {name}"
    if file.name not in PORTERS:
        rooms = [name for name in imports(tree) if reaches(name, "anomalysd_export", "anomalysd_runtime")]
        assert rooms == [], f"{file.name} opens {rooms}"


@pytest.mark.parametrize(
    ("folder", "locked"),
    [
        (TRAINING, ("anomalysd_export", "anomalysd_runtime", "onnx", "onnxruntime")),
        (RUNTIME, ("anomalysd_export", "anomalysd_edge.training", *HEAVY)),
        (EXPORT, ("anomalysd_edge.cli", "anomalysd_edge.workflows.inspect")),
    ],
    ids=["training", "runtime", "export"],
)
def test_rooms_keep_their_doors_shut(folder: Path, locked: tuple[str, ...]) -> None:
    for file in sources(folder):
        wrong = [name for name in imports(parsed(file)) if reaches(name, *locked)]
        assert wrong == [], f"{file} imports {wrong}"


def test_engines_of_many_machines_are_imported_where_they_are_used() -> None:
    """Ray, fsspec and Triton's interface come with extras: no module may need them to be imported."""
    for file in [*root_sources(), *sources(RUNTIME), *sources(EXPORT)]:
        tree = parsed(file)
        found = [name for name in at_import_time(tree) if reaches(name, "ray", "fsspec", "triton_python_backend_utils")]
        assert found == [], f"{file} imports {found} when it is imported"
        if file.parent.name != "distributed":
            assert not any(reaches(name, "ray", "triton_python_backend_utils") for name in imports(tree)), file


def test_nobody_imports_the_folders() -> None:
    """`import export` would make a second copy of every class beside anomalysd_export."""
    rooms = [ROOT, EXPORT, RUNTIME, HOUSE / "tests", *(f for f in [HOUSE / "benchmarks"] if list(f.rglob("*.py")))]
    for file in (file for folder in rooms for file in sources(folder)):
        wrong = [
            name for name in imports(ast.parse(file.read_text(encoding="utf-8"))) if reaches(name, "export", "runtime")
        ]
        assert wrong == [], f"{file} imports {wrong}"


GUARD = """
import sys
from importlib.abc import MetaPathFinder

class Locked(MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in LOCKED:
            raise ModuleNotFoundError(f"No module named {name!r} (locked by the test)", name=name)
        return None

sys.meta_path.insert(0, Locked())
sys.path[:0] = PATHS
"""


def start(code: str, locked: tuple[str, ...]) -> subprocess.CompletedProcess[str]:
    """Run `code` in a fresh Python in which `locked` cannot be imported."""
    paths = [str(HOUSE), str(HOUSE / "export"), str(HOUSE / "runtime")]
    setup = f"LOCKED, PATHS = {set(locked)!r}, {paths!r}\n{GUARD}"
    return subprocess.run(
        [sys.executable, "-c", setup + code], capture_output=True, text=True, check=False, timeout=120
    )


def modules() -> list[str]:
    named = []
    for base, files in ((HOUSE, root_sources()), (HOUSE / "runtime", sources(RUNTIME))):
        for file in files:
            parts = file.relative_to(base).with_suffix("").parts
            named.append(".".join(parts[:-1] if parts[-1] == "__init__" else parts))
    return [name for name in named if not name.endswith("__main__")]


def test_root_and_runtime_import_without_torch() -> None:
    code = "import importlib\n" + "".join(f"importlib.import_module({name!r})\n" for name in modules())
    done = start(code + "print('all', len(sys.modules) > 100)", HEAVY)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "all True"


def test_building_imports_without_torch() -> None:
    """A Jetson builds its engines without the training half."""
    names = [f"anomalysd_export.engines.{file.stem}" for file in sources(EXPORT / "engines") if file.stem[0] != "_"]
    code = "import importlib\n" + "".join(f"importlib.import_module({name!r})\n" for name in names)
    done = start(code + "print('all')", ("torch", "diffusers", "transformers", "peft"))
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "all"


def test_the_lock_locks() -> None:
    done = start("import anomalysd_edge.training.models.base", HEAVY)
    assert done.returncode == 1
    assert "locked by the test" in done.stderr


def test_without_onnxruntime_the_extra_is_named() -> None:
    code = """
from anomalysd_edge.errors import MissingExtra
try:
    import anomalysd_runtime.onnx.networks
except MissingExtra as error:
    print(error)
"""
    done = start(code, ("onnxruntime",))
    assert done.returncode == 0, done.stderr
    assert "'onnxruntime'" in done.stdout
    assert "anomalysd-edge[cpu]" in done.stdout


def test_an_inspection_without_torch(tmp_path: Path) -> None:
    """From a bundle to a verdict with every heavy package locked out."""
    from tests.support.small_graphs import small_bundle

    small_bundle(tmp_path / "bundle")
    code = f"""
import numpy as np
from pathlib import Path
from anomalysd_runtime.loading import open_detector
detector = open_detector(Path({str(tmp_path / "bundle")!r}), threads=1)
(answer,) = detector.inspect([np.zeros((20, 20, 3), np.uint8)], "bottle")
print(answer.pred_label in (0, 1), np.isfinite(answer.pred_score))
"""
    done = start(code, HEAVY)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["True", "True"]
