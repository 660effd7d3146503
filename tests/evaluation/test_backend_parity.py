"""The gate: it sees flips, falls of AUROC, and which photo and network are to blame."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from anomalysd_edge.core.types import F32, I64
from anomalysd_edge.data.datasets import Sample
from anomalysd_edge.errors import DatasetError, InputError
from anomalysd_edge.evaluation.backend_parity import GateSettings, judge
from anomalysd_edge.evaluation.network_parity import SideBySide
from anomalysd_edge.method.detector import Detector
from anomalysd_edge.method.networks import InpaintJob
from anomalysd_edge.vision import images
from anomalysd_edge.workflows.verify import gate_record, network_rows, rows, worst_picture, write_report
from tests.method.test_detector import SCHEDULE, SMALL, constants, photo
from tests.support.fake_networks import FakeNetworks


class Coarse(FakeNetworks):
    """Networks that round their latents to steps of `step`."""

    backend = "coarse"

    def __init__(self, step: float) -> None:
        super().__init__()
        self.step = step

    def encode(self, images: F32) -> F32:
        return np.asarray(np.round(super().encode(images) / self.step) * self.step, dtype=np.float32)


class Blind(FakeNetworks):
    """Networks whose features and repaints are the same whatever the photo shows."""

    backend = "blind"

    def encode(self, images: F32) -> F32:
        return np.asarray(super().encode(np.zeros_like(images)), dtype=np.float32)

    def features(self, images: F32) -> F32:
        return np.asarray(super().features(np.zeros_like(images)), dtype=np.float32)

    def distance(self, references: F32, repaints: F32, reference_of: I64) -> F32:
        return np.asarray(super().distance(references, repaints, reference_of) * 0, dtype=np.float32)


@pytest.fixture
def samples(tmp_path: Path) -> list[Sample]:
    found = []
    for number in range(8):
        path = tmp_path / f"{number}.png"
        bad = number % 2 == 1
        images.save_png(path, photo(number, defect=bad))
        mask = np.zeros((40, 40), np.uint8)
        mask[10:20, 10:20] = 255
        images.save_png(tmp_path / f"{number}_mask.png", np.repeat(mask[..., None], 3, axis=2))
        size = images.load_rgb(path).shape[:2]
        mask_path = tmp_path / f"{number}_mask.png" if bad and size == (40, 40) else None
        found.append(Sample(path, "part", "spot" if bad else "good", mask_path))
    return found


def detectors(step: float = 1e-3, threshold: float | None = None) -> tuple[Detector, Detector]:
    networks = FakeNetworks()
    known = constants(networks)
    a = Detector(networks, SCHEDULE, {"part": known}, SMALL)
    other = known if threshold is None else known.calibrated(threshold=threshold)
    return a, Detector(Coarse(step), SCHEDULE, {"part": other}, SMALL)


def test_small_differences_pass_and_are_told(samples: list[Sample]) -> None:
    found = judge(*detectors(), samples, GateSettings(probes=2), labels=True)
    assert found.passed
    assert found.flips == 0
    assert found.figures is not None
    assert 0 < found.score_difference < 0.1
    assert 0 < found.networks["vae_encoder"].max_abs <= 5e-4 + 1e-6
    assert found.networks["vae_decoder"].max_abs == 0, "the decoder is the same: compared on the same latents"
    assert "verified: coarse against fake on 8 photos: verdict flips 0" in found.sentence()
    assert gate_record(found).passed
    assert [row[0] for row in network_rows(found)] == sorted(found.networks)


def test_a_flip_is_refused_and_named(samples: list[Sample]) -> None:
    found = judge(*detectors(threshold=1e9), samples, GateSettings(probes=1))
    assert not found.passed
    assert found.flips > 0
    assert found.worst_photo.flip
    assert found.sentence().startswith("REFUSED")
    assert rows(found)[0][-1] == "FLIP"
    assert found.worst_path in {sample.path for sample in samples}
    allowed = judge(*detectors(threshold=1e9), samples, GateSettings(flips=found.flips, probes=1))
    assert allowed.passed


def test_a_fall_of_auroc_is_refused_without_a_flip(samples: list[Sample]) -> None:
    networks = FakeNetworks()
    nobody = {"part": constants(networks).calibrated(threshold=1e9)}
    right, other = (Detector(n, SCHEDULE, nobody, SMALL) for n in (networks, Blind()))
    found = judge(right, other, samples, GateSettings(probes=1), labels=True)
    assert found.flips == 0
    assert found.auroc_drop is not None
    assert found.auroc_drop > 0.002
    assert not found.passed
    assert judge(right, other, samples, GateSettings(auroc_drop=1.0, probes=1), labels=True).passed
    assert judge(right, other, samples, GateSettings(probes=1)).auroc_drop is None


def test_the_report_shows_the_worst_photo(samples: list[Sample], tmp_path: Path) -> None:
    found = judge(*detectors(), samples, GateSettings(probes=1), labels=True)
    write_report(tmp_path / "out", found, "bundle <b>")
    page = (tmp_path / "out/verify.html").read_text(encoding="utf-8")
    assert found.worst_photo.name in page
    assert "bundle &lt;b&gt;" in page
    picture = images.load_rgb(tmp_path / "out/worst.png")
    side = found.worst[0].anomaly_map.shape[0]
    assert picture.shape == (side, 4 * side, 3) == worst_picture(found).shape
    assert (picture[:, :side] == images.resize(images.load_rgb(found.worst_path), side)).all()


def test_it_needs_photos_and_labels_of_both_kinds(samples: list[Sample]) -> None:
    with pytest.raises(InputError, match="no photos"):
        judge(*detectors(), [])
    with pytest.raises(DatasetError, match="both good and bad"):
        judge(*detectors(), [sample for sample in samples if not sample.label], labels=True)


def test_the_unet_is_compared_pass_by_pass() -> None:
    """A second pass on the reference's latents, not on those that the first pass had already bent."""
    seen: list[Any] = []

    class Bent(FakeNetworks):
        def inpaint(self, job: Any) -> F32:
            seen.append(job.start_latents.copy())
            return super().inpaint(job) + np.float32(0.25)

    right = FakeNetworks()
    both = SideBySide(right, Bent())
    rng = np.random.default_rng(0)
    z = rng.normal(size=(2, 3, 8, 8)).astype(np.float32)
    ones = np.ones((2, 1, 8, 8), np.float32)
    job = InpaintJob(z, ones, z, np.zeros((1, 77, 4), np.float32), np.zeros(2, np.int64), np.array([9, 5]),
                     np.array([[0.9, 0.1], [0.8, 0.2]], np.float32))  # fmt: skip
    both.inpaint(job)
    assert both.found["unet"].max_abs == pytest.approx(0.25, abs=1e-5)
    assert both.found["unet"].samples == 4
    assert len(seen) == 2
