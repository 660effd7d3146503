"""What is released: version, addresses, requirements that resolve, and the workflows that do it."""

from __future__ import annotations

import importlib
import re
import subprocess
import sys
import zipfile
from email import message_from_string
from pathlib import Path
from typing import Any

import pytest

import anomalysd_edge
from tests.support.command import ROOT, verbs

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

TEXT = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
PROJECT: dict[str, Any] = tomllib.loads(TEXT)["project"]
EXTRAS: dict[str, list[str]] = PROJECT["optional-dependencies"]
WORKFLOWS = sorted((ROOT / ".github/workflows").glob("*.yml"))
JETSON = {"jetson6": "3.10", "jetson7": "3.12"}
"""By extra: the Python of its JetPack, whose wheels are those of aarch64."""


def pip(*arguments: str | Path, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """pip in a process of its own."""
    command = [sys.executable, "-m", "pip", *map(str, arguments), "--no-input", "--disable-pip-version-check"]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of this checkout. Its builder comes from a package index."""
    folder = tmp_path_factory.mktemp("wheel")
    builder = pip("download", "--no-deps", "--dest", folder / "builder", "hatchling")
    if builder.returncode:
        pytest.skip(f"no package index answers here: {builder.stderr.strip().splitlines()[-1]}")
    built = pip("wheel", "--no-deps", "--wheel-dir", folder, ROOT)
    assert built.returncode == 0, built.stderr
    (found,) = folder.glob("*.whl")
    return found


@pytest.mark.slow
@pytest.mark.net
def test_a_wheel_holds_the_version_the_addresses_the_assets_and_no_tests(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        (metadata,) = [name for name in names if name.endswith(".dist-info/METADATA")]
        head = message_from_string(archive.read(metadata).decode())
    assert head["Version"] == anomalysd_edge.__version__
    assert dict(line.split(", ", 1) for line in head.get_all("Project-URL", [])) == PROJECT["urls"]
    tops = {name.partition("/")[0] for name in names} - {metadata.partition("/")[0]}
    assert tops == {"anomalysd_edge", "anomalysd_export", "anomalysd_runtime"}
    for file in (ROOT / "anomalysd_edge/assets").rglob("*.*"):
        assert str(file.relative_to(ROOT)) in names
    assert {"anomalysd_edge/py.typed", "anomalysd_runtime/py.typed", "anomalysd_export/py.typed"} <= set(names)


@pytest.mark.slow
@pytest.mark.net
@pytest.mark.parametrize("extra", sorted(EXTRAS))
def test_every_extra_resolves(extra: str, wheel: Path, tmp_path: Path) -> None:
    """As a wheel has it: a builder writes out the extras that an extra names."""
    other: list[str] = []
    if extra in JETSON:
        # Ubuntu 22.04's C library; pip does not count down from one by itself.
        other = [f"--platform=manylinux_2_{minor}_aarch64" for minor in range(17, 36)]
        other += ["--python-version", JETSON[extra], "--only-binary", ":all:", "--target", str(tmp_path)]
    done = pip("install", "--dry-run", "--ignore-installed", *other, f"{wheel}[{extra}]", cwd=tmp_path)
    if done.returncode and re.search(r"tensorrt_cu\d+_libs", done.stderr + done.stdout):
        pytest.skip("TensorRT's libraries lie on an index of NVIDIA's own, which does not answer here")
    assert done.returncode == 0, done.stderr
    assert "Would install" in done.stdout


def test_the_reference_to_an_extra_has_no_marker() -> None:
    """The builder writes the extra's requirements in its place, and loses the marker."""
    lines = [line for extra in EXTRAS.values() for line in extra if line.startswith("anomalysd-edge[")]
    assert lines
    assert not [line for line in lines if ";" in line]


def bounded() -> list[tuple[str, str, str]]:
    """Package, upper bound or pin, and the comments of its list, for each such requirement."""
    found = []
    for comments, requirements in re.findall(
        r"((?:^#[^\n]*\n)*)^[\w-]+ = \[(.*?)\]\n", TEXT[: TEXT.index("[project.scripts]")], re.MULTILINE | re.DOTALL
    ):
        said = comments + "\n".join(re.findall(r"#.*", requirements))
        for requirement in re.findall(r'"([^"]+)"', requirements):
            name = re.split(r"[\[<>=;]", requirement)[0]
            found += [
                (name, bound, said) for bound in re.findall(r"(?:==|<)\s*([\d.]+)", requirement.partition(";")[0])
            ]
    return found


@pytest.mark.parametrize(("name", "bound", "said"), bounded(), ids=lambda value: str(value)[:20])
def test_a_reason_stands_beside_every_upper_bound(name: str, bound: str, said: str) -> None:
    assert re.search(rf"\b{re.escape(name)}\b|\b{re.escape(bound.rstrip('.'))}\b", said, re.IGNORECASE), (
        f"no comment beside {name} says why not {bound} or newer"
    )


def test_there_are_bounds_to_check() -> None:
    assert {("torch", True), ("typer", True), ("numpy", False)} == {
        (name, name in {found for found, *_ in bounded()}) for name in ("torch", "typer", "numpy")
    }


def test_version_and_addresses_stand_in_one_place() -> None:
    assert "version" in PROJECT["dynamic"]
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert f'"{PROJECT["urls"]["Homepage"]}"' in citation
    assert "\nversion:" not in citation, "it would be a second place"


def test_only_a_tag_that_fits_becomes_a_release(tmp_path: Path) -> None:
    for name in ("pyproject.toml", "CHANGELOG.md", "anomalysd_edge/__init__.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text((ROOT / name).read_text(encoding="utf-8"), encoding="utf-8")

    def release(tag: str, address: str = PROJECT["urls"]["Homepage"]) -> str:
        command = [sys.executable, str(ROOT / ".ci/release"), tag, address]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False).stderr

    assert release(f"v{anomalysd_edge.__version__}") == ""
    notes = (tmp_path / "out/notes.md").read_text(encoding="utf-8")
    assert notes.startswith("Bundles, runs and records of 0.1.0 open")
    assert "## [" not in notes
    assert "is not v and the package's version" in release("v9.9.9")
    assert "and this is" in release(f"v{anomalysd_edge.__version__}", "https://github.com/somebody/else")
    (tmp_path / "CHANGELOG.md").write_text("# Changelog\n\n## [Unreleased]\n", encoding="utf-8")
    assert "no dated section" in release(f"v{anomalysd_edge.__version__}")


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda path: str(path.name))
def test_a_workflow_pins_its_actions_and_calls_what_is_there(workflow: Path) -> None:
    text = workflow.read_text(encoding="utf-8")
    used = re.findall(r"uses: (\S+)(.*)", text)
    assert used
    for action, comment in used:
        assert re.fullmatch(r"[\w.-]+/[\w.-]+@[0-9a-f]{40}", action), f"{action} is not pinned to a commit"
        assert re.fullmatch(r" # v\d+\.\d+\.\d+", comment), f"{action} does not say its version"
    targets = set(re.findall(r"^([\w ]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    for words in re.findall(r"run: make (.+)", text):
        assert set(words.split()) <= targets
    for script in re.findall(r"run: (?:python )?(\.ci/\w+)", text):
        assert (ROOT / script).is_file()
    assert "persist-credentials: false" in text or "actions/checkout" not in text


def test_the_site_has_every_page_and_the_reference_every_verb(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "docs")
    pages: Any = importlib.import_module("pages")
    try:
        named = re.findall(r": ([\w-]+\.md)$", (ROOT / "mkdocs.yml").read_text(encoding="utf-8"), re.MULTILINE)
        files = {file.name for file in (ROOT / "docs").glob("*.md")} | set(pages.PAGES.values())
        assert sorted(named) == sorted(files | {"cli.md", "python.md"})
        assert all((ROOT / source).is_file() for source in pages.PAGES)
        page = pages.command_line()
        assert {line.split()[2] for line in page.splitlines() if line.startswith("## sd-edge ")} == verbs()
        assert "| `--shots <int>` | K: good photos per class; 0 leaves the base model as it is. [default: 4] |" in page
        listed = pages.python_names()
        assert "::: anomalysd_edge.method.detector.Detector" in listed
        assert listed.count(":::") == len(anomalysd_edge.__all__) - 1, "all but the version"
        moved = pages.relinked("[a](docs/api.md#x) [b](benchmarks/run.py) [c](https://x/y)", "README.md", "https://us")
        assert moved == "[a](api.md#x) [b](https://us/blob/main/benchmarks/run.py) [c](https://x/y)"
        assert pages.relinked("[d](../benchmarks/README.md)", "docs/speed.md", "https://us") == "[d](benchmarks.md)"
    finally:
        sys.modules.pop("pages")
