"""NaN in a lower precision: the network goes on in float32, the answer says so; NaN in float32 is an error."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from anomalysd_edge.bundle.detector_factory import detector_of
from anomalysd_edge.errors import NumericError
from anomalysd_edge.reports.inspection import inspection_json
from anomalysd_runtime.fallback import FallbackNetworks
from anomalysd_runtime.onnx.networks import OnnxNetworks
from tests.support.host_engines import written
from tests.support.small_graphs import SIZES, small_bundle


@pytest.fixture
def overflowing(tmp_path: Path) -> tuple[dict[str, Path], dict[str, Path]]:
    """The small graphs, and a copy whose decoder multiplies by what float16 knows as infinity."""
    files = written(tmp_path)
    broken = onnx.load(str(files["vae_decoder"]))
    for entry in broken.graph.initializer:
        if entry.name == "decoder_weight":
            with np.errstate(over="ignore"):
                weight = (numpy_helper.to_array(entry) * 1e6).astype(np.float16).astype(np.float32)
            entry.CopyFrom(numpy_helper.from_array(np.where(np.isinf(weight), np.nan, weight), entry.name))
    file = tmp_path / "broken.onnx"
    onnx.save(broken, str(file))
    return files, {**files, "vae_decoder": file}


def test_the_network_falls_back_and_everyone_is_told(
    overflowing: tuple[dict[str, Path], dict[str, Path]], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    files, broken = overflowing
    bundle = small_bundle(tmp_path / "bundle")
    photo = np.random.default_rng(0).integers(0, 256, (20, 20, 3), dtype=np.uint8)
    opened: list[int] = []

    def float32() -> OnnxNetworks:
        opened.append(1)
        return OnnxNetworks(files, SIZES, threads=1)

    with OnnxNetworks(files, SIZES, threads=1) as right:
        expected = detector_of(bundle, right).inspect([photo], "bottle")[0]
    with FallbackNetworks(OnnxNetworks(broken, SIZES, threads=1), float32) as networks:
        assert opened == [], "float32 was opened before it was needed"
        detector = detector_of(bundle, networks)
        with caplog.at_level(logging.WARNING, "anomalysd_runtime"):
            (answer,) = detector.inspect([photo], "bottle")
            detector.inspect([photo], "bottle")
    assert answer.pred_score == expected.pred_score
    assert set(networks.fallen) == {"vae_decoder"}
    assert "vae_decoder in float32 after NaN" in inspection_json(answer, "photo")["backend"]
    assert len(opened) == 1
    told = [record.message for record in caplog.records]
    assert len(told) == 1
    assert "'vae_decoder'" in told[0]


def test_nan_in_float32_is_an_error(overflowing: tuple[dict[str, Path], dict[str, Path]]) -> None:
    _, broken = overflowing
    latents = np.ones((1, 4, 4, 4), np.float32)
    with FallbackNetworks(
        OnnxNetworks(broken, SIZES, threads=1), lambda: OnnxNetworks(broken, SIZES, threads=1)
    ) as networks:
        with pytest.raises(NumericError, match="vae_decoder"):
            networks.decode(latents)
        assert networks.fallen == {}, "a fallback that failed is none"
