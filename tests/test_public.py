"""The public face: which names there are, that they are lazy, typed and described, and need no torch."""

from __future__ import annotations

import ast
import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import anomalysd_edge
from anomalysd_edge import errors

PUBLIC = {
    "Bundle",
    "Detector",
    "Evidence",
    "Inspection",
    "TrainSettings",
    "TrainingCallback",
    "__version__",
    "load_rgb",
    "open_detector",
    "read_bundle",
    "train",
    *(name for name, value in vars(errors).items() if inspect.isclass(value)),
}
"""A name more or less is a change of the interface: it belongs into the changelog and into docs/api.md."""
API = Path(__file__).parents[1] / "docs" / "api.md"


def test_the_public_names_are_these() -> None:
    assert set(anomalysd_edge.__all__) == PUBLIC


@pytest.mark.parametrize("name", sorted(PUBLIC))
def test_every_public_name_is_there_and_described(name: str) -> None:
    found = getattr(anomalysd_edge, name)
    if name != "__version__":
        assert found.__doc__, f"{name} has no docstring"
    assert f"`{name}" in API.read_text(encoding="utf-8"), f"docs/api.md does not name {name}"


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        getattr(anomalysd_edge, "nothing")  # noqa: B009


def test_importing_the_package_loads_no_other_package() -> None:
    """Measured in modules, since a time limit would depend on the machine."""
    code = "import sys; import anomalysd_edge; print(sorted({m.partition('.')[0] for m in sys.modules}))"
    done = subprocess.run([sys.executable, "-I", "-c", code], capture_output=True, text=True, check=True)
    loaded = set(ast.literal_eval(done.stdout))
    assert not loaded & {"numpy", "PIL", "typer", "rich", "torch", "onnxruntime", "anomalysd_runtime"}


def test_the_names_are_those_of_the_modules_that_define_them() -> None:
    from anomalysd_edge.vision.images import load_rgb

    assert anomalysd_edge.load_rgb is load_rgb
    assert "open_detector" in dir(anomalysd_edge)
