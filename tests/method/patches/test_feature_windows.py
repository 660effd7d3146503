"""Tiled prototypes: windows joined without a seam, fine defects that survive, the class's word from file to bundle."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from anomalysd_edge.calibration.settings import CalibrationSettings
from anomalysd_edge.core.types import U8
from anomalysd_edge.data.classes import ClassSpec, load_classes
from anomalysd_edge.errors import ClassError, ShapeError
from anomalysd_edge.method.class_model import ClassModel
from anomalysd_edge.method.detector import Detector
from anomalysd_edge.method.inpainting.schedule import NoiseSchedule
from anomalysd_edge.method.patches.feature_windows import dense_features, tiled_side, tiles_for
from anomalysd_edge.method.settings import EDGE
from anomalysd_edge.vision import images
from tests.support.calibration import calibrated
from tests.support.fake_networks import FakeNetworks

SCHEDULE = NoiseSchedule.from_config(
    {"num_train_timesteps": 1000, "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
)
SETTINGS = replace(EDGE, scales=(2, 4), draws=1, smoothing=0.0, top_share=0.001)


def grained(seed: int, side: int = 320) -> U8:
    """A grey plate with fine grain."""
    rng = np.random.default_rng(seed)
    return np.clip(rng.normal(128, 6, (side, side, 1)) + np.zeros(3), 0, 255).astype(np.uint8)


def cracked(seed: int) -> U8:
    """The same with a dark line of two pixels."""
    photo = grained(seed)
    photo[100:220, 150:152] = 40
    return photo


def constants_of(networks: FakeNetworks, tiles: int, seeds: tuple[int, ...] = (1, 2)) -> dict[str, ClassModel]:
    spec = ClassSpec("plate", "plate", "object", tiles=tiles)
    settings = CalibrationSettings(bank_size=512, negatives=4)
    return {"plate": calibrated(networks, spec, [grained(s) for s in seeds], SETTINGS, settings)}


@pytest.mark.parametrize("tiles", [1, 2, 3])
def test_windows_join_without_a_seam(tiles: int) -> None:
    """Features of a network that looks at 4 x 4 pixels only are the same, seen in windows or at once."""
    windowed = FakeNetworks(features_px=32)
    side = tiled_side(32, tiles)
    square = grained(3, side)
    found = dense_features(windowed, [square, square[::-1].copy()], tiles)
    whole = FakeNetworks(features_px=side).features(images.to_array(square))
    assert found.shape == (2, whole.shape[1], side // 4, side // 4)
    np.testing.assert_array_equal(found[0], whole[0])


def test_a_square_of_another_side_is_refused() -> None:
    with pytest.raises(ShapeError, match="2 tiles; expected 56 px"):
        dense_features(FakeNetworks(features_px=32), [grained(0, 64)], 2)


def test_a_hairline_stays_thin() -> None:
    """The share of the plate that counts as cracked: of the photo as a whole it is smeared over wide patches."""
    share = {}
    for tiles in (1, 4):
        networks = FakeNetworks(features_px=32)
        bank = constants_of(networks, tiles)["plate"].banks[-1]
        square = images.resize(cracked(30), tiled_side(32, tiles))
        far = bank.distance(dense_features(networks, [square], tiles)[0])
        share[tiles] = float((far > 0.5 * far.max()).mean())
    assert share[4] < 0.5 * share[1], share


def test_classes_with_and_without_tiles_share_a_group() -> None:
    networks = FakeNetworks(features_px=32)
    one, many = constants_of(networks, 1)["plate"], constants_of(networks, 2)["plate"]
    assert (one.tiles, many.tiles) == (1, 2)
    detector = Detector(networks, SCHEDULE, {"one": one, "many": many}, SETTINGS)
    photos = [cracked(1), cracked(1), grained(5)]
    together = detector.inspect(photos, ["many", "one", "many"])
    for photo, name, answer in zip(photos, ["many", "one", "many"], together, strict=True):
        assert detector.inspect([photo], name)[0].pred_score == answer.pred_score
    assert together[0].pred_score != together[1].pred_score


def test_the_class_file_says_how_many(tmp_path: Path) -> None:
    file = tmp_path / "classes.toml"
    file.write_text('[plate]\nkind = "texture"\ntiles = 3\n[lid]\n', encoding="utf-8")
    assert {name: spec.tiles for name, spec in load_classes(file).items()} == {"plate": 3, "lid": 0}
    for wrong in ("-1", "9", "2.0", "true", '"2"'):
        file.write_text(f"[plate]\ntiles = {wrong}\n", encoding="utf-8")
        with pytest.raises(ClassError, match="expected a number from 0 to 8"):
            load_classes(file)


@pytest.mark.parametrize(("side", "tiles"), [(192, 1), (384, 1), (640, 1), (700, 2), (1024, 2), (1200, 3), (4000, 3)])
def test_left_alone_the_photos_size_says(side: int, tiles: int) -> None:
    assert tiles_for([(side, side // 2), (side // 2, side)], 256) == tiles
    assert tiles_for([(side, side)], 0) == 1


def test_a_large_photo_is_tiled_unless_the_class_says_otherwise() -> None:
    networks = FakeNetworks(features_px=32)
    assert constants_of(networks, 0)["plate"].tiles == 3
    assert constants_of(networks, 1)["plate"].tiles == 1
