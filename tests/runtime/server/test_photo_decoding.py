"""Photos as clients send them: what is wrong with them is logged once, and refuses nothing."""

from __future__ import annotations

import numpy as np
import pytest

from anomalysd_edge.vision.images import encode_png, log_once
from anomalysd_runtime.server.decoding import decode


def test_a_poor_photo_is_logged_once_and_taken(caplog: pytest.LogCaptureFixture) -> None:
    log_once.cache_clear()
    dark = np.full((20, 20, 3), 7, np.uint8)
    sound = np.random.default_rng(0).integers(0, 256, (20, 20, 3), dtype=np.uint8)
    for photo in (dark, sound, dark):
        np.testing.assert_array_equal(decode(encode_png(photo)), photo)
    assert [r.message for r in caplog.records] == ["photos sent: a poor shot: it is of one colour, (7, 7, 7)"]
