"""The box over real sockets: verdicts, refusals, bundles, the record, health."""

from __future__ import annotations

import base64
import io
import json
import re
import shutil
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from http.client import HTTPException
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from anomalysd_edge.errors import SettingsError
from anomalysd_edge.method.result import Inspection
from anomalysd_edge.vision.images import decode_rgb, encode_png
from anomalysd_runtime.loading import open_detector
from anomalysd_runtime.server.errors import Unavailable
from anomalysd_runtime.server.inference.inflight import PhotoRequest
from anomalysd_runtime.server.inference.worker import judge
from anomalysd_runtime.server.settings import RecordSettings, SecuritySettings
from tests.support.serving import (
    CRASH,
    NAN,
    SLOW,
    STUCK,
    Box,
    open_losing,
    open_telling,
    open_touchy,
    open_without_cuda,
    png,
    running_box,
    small_settings,
    touchy_settings,
)

pytestmark = pytest.mark.net


@pytest.fixture(scope="module")
def box(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Box]:
    record = RecordSettings(tmp_path_factory.mktemp("record") / "record.sqlite", keep_photo=True, keep_map=True)
    security = SecuritySettings(max_body_bytes=1 << 20, max_pixels=100_000, body_timeout_s=0.5, header_timeout_s=0.5)
    with running_box(replace(small_settings(bundle), record=record, security=security), open_touchy) as opened:
        yield opened


def test_only_who_asks_gets_more_than_the_verdict_needs(box: Box, bundle: Path) -> None:
    photo = png(3)
    with open_detector(bundle, threads=1) as detector:
        (whole,) = detector.inspect([decode_rgb(photo)], "bottle")
        (settled,) = detector.inspect([decode_rgb(photo)], "bottle", full=False)
    plain = box.inspect(photo, "?class=bottle").json
    asked = box.inspect(photo, "?class=bottle&full=true").json
    assert (plain["pred_score"], plain["mode"]) == (settled.pred_score, settled.mode)
    assert (asked["pred_score"], asked["mode"]) == (whole.pred_score, whole.mode)
    assert plain["verdict"] == asked["verdict"]


def test_a_verdict_is_the_detectors_own(box: Box, bundle: Path) -> None:
    photo = png(1)
    found = box.inspect(photo, "?class=bottle&outputs=map,mask,overlay,repaint,evidence,heat")
    assert found.status == 200, found.body
    with open_detector(bundle, threads=1) as detector:
        (expected,) = detector.inspect([decode_rgb(photo)], "bottle")
    told = found.json
    assert told["pred_score"] == expected.pred_score
    assert told["threshold"] == expected.threshold
    assert told["pred_label"] == expected.pred_label
    assert told["class"] == "bottle"
    assert told["bundle"] == "line1"
    assert told["backend"] == "onnxruntime CPUExecutionProvider"
    assert told["timings_ms"]["unet"] > 0
    assert set(told["pictures"]) == {"map", "mask", "overlay", "repaint", "evidence", "heat"}
    low, high = told["map_range"]
    gray = np.asarray(Image.open(io.BytesIO(base64.b64decode(told["pictures"]["map"]))), np.float64)
    assert np.abs(low + gray / 65535 * (high - low) - expected.anomaly_map).max() <= (high - low) / 65535
    assert expected.pred_mask is not None
    mask = np.asarray(Image.open(io.BytesIO(base64.b64decode(told["pictures"]["mask"]))))
    assert ((mask > 0) == expected.pred_mask).all()
    area = expected.pred_mask.sum() * (20 / 16) ** 2
    assert sum(region["area_px"] for region in told["regions"]) == pytest.approx(area, rel=0.1, abs=2)


def test_multipart_and_raw_bodies_give_the_same_score(box: Box) -> None:
    raw = box.inspect(png(2), "?class=bottle").json
    form = box.form("/inspect", [("photo", png(2)), ("class", "bottle"), ("outputs", "map")]).json
    assert form["pred_score"] == raw["pred_score"]
    assert form["photo"] == "photo.png"
    assert list(form["pictures"]) == ["map"]


@pytest.mark.parametrize("seed", [2, 3])
def test_a_photo_without_a_filename_is_a_photo(box: Box, seed: int) -> None:
    """C#'s ByteArrayContent and many PLC libraries send none, and photos may be large."""
    noise = np.random.default_rng(seed).integers(0, 255, (300, 300, 3), dtype=np.uint8)
    data = png(seed) if seed == 2 else encode_png(noise)
    assert seed == 2 or len(data) > 64 * 1024
    head = b'--q\r\nContent-Disposition: form-data; name="photo"\r\nContent-Type: image/png\r\n\r\n'
    tail = b'\r\n--q\r\nContent-Disposition: form-data; name="class"\r\n\r\nbottle\r\n--q--\r\n'
    found = box.ask("POST", "/inspect", head + data + tail, {"content-type": "multipart/form-data; boundary=q"})
    assert found.json["pred_score"] == box.inspect(data, "?class=bottle").json["pred_score"]


@pytest.mark.parametrize("path", ["/health", "/metrics", "/", "/v2/health/live"])
def test_head_is_answered_as_get_without_a_body(box: Box, path: str) -> None:
    head, got = box.ask("HEAD", path), box.get(path)
    assert (head.status, head.body) == (200, b"")
    assert head.headers.get("content-type") == got.headers.get("content-type")


def test_the_only_class_needs_no_name(box: Box) -> None:
    assert box.inspect(png(2)).json["class"] == "bottle"


def test_a_batch_comes_back_in_order_with_its_own_errors(box: Box) -> None:
    photos = [png(seed) for seed in range(5)]
    single = [box.inspect(photo).json["pred_score"] for photo in photos]
    parts: list[tuple[str, bytes | str]] = [("photo", photo) for photo in (*photos[:2], b"no photo", *photos[2:])]
    found = box.form("/inspect/batch", [*parts, ("class", "bottle")]).json["results"]
    assert [item["status"] for item in found] == [200, 200, 415, 200, 200, 200]
    assert [item["verdict"]["pred_score"] for item in found if item["verdict"]] == single
    assert "no image" in found[2]["error"]


def test_the_same_score_alone_and_among_many(box: Box) -> None:
    photos = [png(seed) for seed in range(24)]
    alone = [box.inspect(photo).json["pred_score"] for photo in photos]
    with ThreadPoolExecutor(24) as pool:
        found = [answer.json for answer in pool.map(box.inspect, photos)]
    assert [each["pred_score"] for each in found] == alone
    assert max(each["group"] for each in found) > 1, "no group was formed, so nothing was tried"


@pytest.mark.parametrize(
    ("query", "body", "kind", "status", "word"),
    [
        ("", b"", "image/png", 422, "empty"),
        ("", b"GIF89a" + b"\0" * 50, "image/gif", 415, "PNG"),
        ("", b"%!PS-Adobe-3.0 EPSF-3.0\n", "application/octet-stream", 415, "PNG"),
        ("", png(1)[:200], "image/png", 422, "damaged"),
        ("", png(1, side=400), "image/png", 413, "megapixels"),
        ("", b"\0" * (1 << 20) + b"\0", "image/png", 413, "longer"),
        ("", b"{}", "application/json", 415, "multipart"),
        ("?class=screw", png(1), "image/png", 404, "bottle"),
        ("?bundle=../../etc", png(1), "image/png", 404, "line1"),
        ("?outputs=all", png(1), "image/png", 422, "overlay"),
        ("?full=perhaps", png(1), "image/png", 422, "true or false"),
        ("?deadline_ms=soon", png(1), "image/png", 422, "milliseconds"),
        ("?deadline_ms=nan", png(1), "image/png", 422, "milliseconds"),
        ("?deadline_ms=0.0001", png(1), "image/png", 504, "deadline"),
    ],
)
def test_bad_input_gets_one_clear_sentence(
    box: Box, query: str, body: bytes, kind: str, status: int, word: str
) -> None:
    found = box.ask("POST", f"/inspect{query}", body, {"content-type": kind})
    assert (found.status, list(found.json)) == (status, ["error"]), found.body
    assert word in found.json["error"]
    assert "Traceback" not in found.json["error"]


@pytest.mark.slow
def test_a_bomb_is_refused_by_its_head(box: Box) -> None:
    bomb = io.BytesIO()
    Image.new("1", (30_000, 30_000)).save(bomb, format="PNG")
    began = time.monotonic()
    assert box.inspect(bomb.getvalue()).status == 413
    assert time.monotonic() - began < 2


@pytest.mark.slow
def test_a_crash_or_nan_costs_one_photo(box: Box) -> None:
    restarts = box.service.engine.state.restarts
    photos = [png(1, SLOW), png(2), png(3, CRASH), png(4), png(5, NAN), png(6)]
    with ThreadPoolExecutor(6) as pool:
        found = list(pool.map(box.inspect, photos))
    assert [answer.status for answer in found] == [200, 200, 500, 200, 500, 200]
    assert "died" in found[2].json["error"]
    assert "NaN" in found[4].json["error"]
    assert box.service.engine.state.restarts > restarts
    assert box.get("/health").json["status"] == "ok"


def test_a_slow_body_is_answered_408_and_a_silent_head_closed(box: Box) -> None:
    with socket.create_connection(("127.0.0.1", box.port), timeout=10) as slow:
        slow.sendall(
            b"POST /inspect HTTP/1.1\r\nHost: localhost\r\nContent-Type: image/png\r\nContent-Length: 99\r\n\r\nab"
        )
        assert slow.recv(200).startswith(b"HTTP/1.1 408")
    with socket.create_connection(("127.0.0.1", box.port), timeout=10) as silent:
        silent.sendall(b"POST /insp")
        assert silent.recv(100) == b""


def test_a_client_that_goes_leaves_nothing_behind(box: Box) -> None:
    assert box.service.store is not None
    before = len(box.service.store.select())
    blocker = threading.Thread(target=box.inspect, args=(png(1, SLOW),))
    blocker.start()
    time.sleep(0.15)
    photo = png(77)
    with socket.create_connection(("127.0.0.1", box.port)) as leaving:
        head = "POST /inspect HTTP/1.1\r\nHost: localhost\r\nContent-Type: image/png\r\n"
        leaving.sendall(f"{head}Content-Length: {len(photo)}\r\n\r\n".encode() + photo)
        time.sleep(0.1)
    blocker.join()
    until = time.monotonic() + 5
    while box.service._taken and time.monotonic() < until:
        time.sleep(0.01)
    assert box.service._taken == 0
    assert len(box.service.store.select()) == before + 1


def test_asked_twice_under_one_key_judged_once(box: Box) -> None:
    assert box.service.store is not None
    with ThreadPoolExecutor(4) as pool:
        found = [a.json for a in pool.map(lambda _: box.inspect(png(9), "?request_key=part-17"), range(4))]
    later = box.inspect(png(9), "?request_key=part-17").json
    assert len({each["uid"] for each in [*found, later]}) == 1
    assert later["repeated"] is True
    assert len(box.service.store.select("request_key = ?", ("part-17",))) == 1
    other = box.inspect(png(10), "?request_key=part-17")
    assert other.status == 422
    assert "another photo" in other.json["error"]


def test_verdicts_are_listed_drawn_and_corrected(box: Box) -> None:
    told = box.inspect(png(3), "?class=bottle").json
    listed = box.get("/verdicts?limit=5").json
    assert listed["recorded"] is True
    assert listed["verdicts"][0]["uid"] == told["uid"]
    assert listed["verdicts"][0]["pred_score"] == told["pred_score"]
    for kind in ("photo", "repaint", "map", "heat", "overlay", "evidence"):
        picture = box.get(f"/verdicts/{told['uid']}/pictures/{kind}")
        assert picture.status == 200
        assert Image.open(io.BytesIO(picture.body)).size == (16, 16)
    assert box.get(f"/verdicts/{told['uid']}/pictures/secret").status == 422
    path = f"/verdicts/{told['uid']}/correction"
    said = box.ask("POST", path, b'{"correction": "ng"}', {"content-type": "application/json"})
    assert said.json["correction"] == "ng"
    assert box.get(f"/verdicts/{told['uid']}").json["correction"] == "ng"
    wrong = box.ask("POST", path, b'{"correction": "maybe"}', {"content-type": "application/json"})
    assert wrong.status == 422
    assert box.get("/verdicts/0000").status == 404


def test_metrics_are_what_happened(box: Box) -> None:
    def told() -> float:
        text = box.get("/metrics").body.decode()
        lines = [line for line in text.splitlines() if line.startswith("sd_edge_verdicts_total{")]
        return sum(float(line.rpartition(" ")[2]) for line in lines)

    before = told()
    box.inspect(png(4))
    assert told() == before + 1
    assert "sd_edge_ready 1.0" in box.get("/metrics").body.decode()


@pytest.mark.slow
def test_a_bundle_is_reloaded_under_load_without_a_lost_request(box: Box) -> None:
    before = box.get("/bundles").json["bundles"][0]
    with ThreadPoolExecutor(8) as pool:
        asked = [pool.submit(box.inspect, png(seed)) for seed in range(40)]
        assert box.ask("POST", "/bundles/line1/reload").status == 200
        assert box.ask("POST", "/bundles/line1/unload").status == 200
        found = [each.result() for each in asked]
    assert [answer.status for answer in found] == [200] * 40
    after = box.get("/bundles").json["bundles"][0]
    assert after["loaded"]
    assert after["bundle_id"] == before["bundle_id"]
    assert box.ask("POST", "/bundles/other/load").status == 404
    until = time.monotonic() + 5
    while len(box.service.bundles.loaded()) > 1 and time.monotonic() < until:
        time.sleep(0.01)
    assert len(box.service.bundles.loaded()) == 1, "the replaced bundle was not closed"


@pytest.mark.slow
def test_a_stuck_worker_is_replaced(bundle: Path) -> None:
    with running_box(touchy_settings(bundle, stuck_s=1.0), open_touchy) as box:
        found = box.inspect(png(1, STUCK))
        assert found.status == 500
        assert "1 s" in found.json["error"]
        assert box.inspect(png(2)).status == 200


@pytest.mark.slow
def test_a_full_queue_is_503_with_retry_after(bundle: Path) -> None:
    with running_box(touchy_settings(bundle, queue=2, group=1), open_touchy) as box, ThreadPoolExecutor(12) as pool:
        found = list(pool.map(lambda n: box.inspect(png(n, SLOW)), range(12)))
    statuses = [answer.status for answer in found]
    assert set(statuses) == {200, 503}
    assert statuses.count(200) >= 3
    assert all(int(answer.headers["retry-after"]) >= 1 for answer in found if answer.status == 503)


@pytest.mark.slow
def test_a_greedy_client_does_not_starve_another(bundle: Path) -> None:
    with running_box(touchy_settings(bundle, group=1), open_touchy) as box, ThreadPoolExecutor(12) as pool:
        greedy = [pool.submit(box.inspect, png(n, SLOW), **{"x-client": "greedy"}) for n in range(8)]
        time.sleep(0.3)
        began = time.monotonic()
        assert box.inspect(png(99), **{"x-client": "modest"}).status == 200
        waited = time.monotonic() - began
        assert not all(each.done() for each in greedy)
        assert [each.result().status for each in greedy] == [200] * 8
    assert waited < 1.6, f"waited {waited:.1f} s behind the greedy client's 3.2 s"


@pytest.mark.slow
def test_a_deadline_that_cannot_be_kept_is_504_and_not_recorded(bundle: Path, tmp_path: Path) -> None:
    settings = replace(touchy_settings(bundle, group=1), record=RecordSettings(tmp_path / "r.sqlite"))
    with running_box(settings, open_touchy) as box:
        found = box.inspect(png(1, SLOW), "?deadline_ms=150")
        assert found.status == 504
        time.sleep(0.6)
        assert box.service.store is not None
        assert box.service.store.select() == []


@pytest.mark.slow
def test_slow_photos_do_not_shut_out_short_deadlines_for_ever(bundle: Path) -> None:
    """Were an idle box to refuse by its spoilt mean, it would judge nothing, and never learn better."""
    with running_box(touchy_settings(bundle, group=1), open_touchy) as box:
        for number in range(8):
            assert box.inspect(png(number, SLOW)).status == 200
        spoilt = max(box.service.engine.state.photo_ms.values())
        assert spoilt > 250
        assert box.inspect(png(9), f"?deadline_ms={0.9 * spoilt:.0f}").status == 200


def test_repaints_are_left_out_for_a_deadline_that_the_client_named(bundle: Path) -> None:
    with running_box(touchy_settings(bundle), open_telling) as box:
        assert box.inspect(png(1)).status == 200, "the box's own deadline cuts nothing"
        found = box.inspect(png(1), "?deadline_ms=9000")
        assert found.status == 500
        (left,) = re.findall(r"([0-9.]+) s are left", found.json["error"])
        assert 0 < float(left) < 9
    with open_detector(bundle, threads=1) as detector:
        photo = decode_rgb(png(1))
        detector.inspect([photo], "bottle", time.monotonic() + 60)  # from which the pace is learned
        (cut,) = judge(detector, [photo], ["bottle"], [True], time.monotonic())
    assert isinstance(cut, Inspection)
    assert (cut.ended, cut.mode.split()[-1]) == ("cut", "cut")


def test_a_line_that_must_be_kept_up_with_gives_every_photo_its_share(bundle: Path) -> None:
    """And refuses none: the share ends repaints, not the photo."""
    with running_box(touchy_settings(bundle, photos_per_second=0.1), open_telling) as box:
        found = box.inspect(png(1))
        (left,) = re.findall(r"([0-9.]+) s are left", found.json["error"])
        assert 9 < float(left) <= 10
        with_own = box.inspect(png(1), "?deadline_ms=5000")
        (less,) = re.findall(r"([0-9.]+) s are left", with_own.json["error"])
        assert float(less) < 5
    with running_box(touchy_settings(bundle, photos_per_second=1e6), open_touchy) as box:
        assert [box.inspect(png(number)).status for number in range(3)] == [200] * 3
    with pytest.raises(SettingsError, match="--photos-per-second is 0; it must be above 0"):
        touchy_settings(bundle, photos_per_second=0.0)


def test_a_deadline_counts_from_when_the_photo_is_asked_for(bundle: Path) -> None:
    """A trigger that is tried again after a missed deadline has a new one, or it would be refused for ever."""
    with running_box(touchy_settings(bundle), open_touchy) as box:
        box.service.reserve()
        ask = PhotoRequest(data=png(3), source="mqtt", client="mqtt", began=time.monotonic() - 3600)
        assert box.service.inspect(ask).result(30).verdict.pred_score > 0


@pytest.mark.slow
def test_a_fallback_is_told(bundle: Path) -> None:
    settings = touchy_settings(bundle, backend="cuda", fallback="cpu")
    with running_box(settings, open_without_cuda) as box:
        health = box.get("/health").json
        assert health["status"] == "degraded"
        assert "CUDAExecutionProvider" in health["reasons"][0]
        assert box.inspect(png(1)).json["backend"] == "onnxruntime CPUExecutionProvider"


@pytest.mark.slow
def test_without_a_fallback_the_box_refuses_to_start(bundle: Path) -> None:
    with (
        pytest.raises(Unavailable, match="CUDAExecutionProvider"),
        running_box(touchy_settings(bundle, backend="cuda"), open_without_cuda),
    ):
        pass


@pytest.mark.slow
def test_a_bundle_deleted_while_serving_is_told_and_costs_no_other(bundle: Path, tmp_path: Path) -> None:
    shutil.copytree(bundle, tmp_path / "gone")
    settings = replace(touchy_settings(bundle), bundles=(bundle, tmp_path / "gone"))
    with running_box(settings, open_touchy) as box:
        shutil.rmtree(tmp_path / "gone")
        assert box.inspect(png(1), "?bundle=gone").status == 200, "what is in memory goes on"
        assert box.inspect(png(1, CRASH), "?bundle=line1").status == 500
        lost = box.inspect(png(1), "?bundle=gone")
        assert lost.status == 503
        assert box.inspect(png(1), "?bundle=line1").status == 200
        assert box.get("/health").json["status"] == "degraded"
        shutil.copytree(bundle, tmp_path / "gone")
        assert box.inspect(png(1), "?bundle=gone").status == 200, "copied again, it is opened again"
        assert box.get("/health").json["status"] == "ok"


@pytest.mark.slow
def test_a_stop_does_not_wait_for_a_stuck_worker(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("anomalysd_runtime.server.inference.engine.STOP_S", 0.5)
    began = 0.0
    with (
        ThreadPoolExecutor(1) as pool,
        running_box(replace(touchy_settings(bundle), stop_s=0.5), open_touchy) as box,
    ):
        stuck = pool.submit(box.inspect, png(1, STUCK))
        time.sleep(0.5)
        began = time.monotonic()
    assert time.monotonic() - began < 10
    assert isinstance(stuck.exception(), (OSError, HTTPException)) or stuck.result().status in (500, 503)


@pytest.mark.slow
def test_bundles_beyond_the_memory_limit_are_opened_when_asked_for(bundle: Path, tmp_path: Path) -> None:
    shutil.copytree(bundle, tmp_path / "line2")
    settings = replace(touchy_settings(bundle, memory_bytes=1), bundles=(bundle, tmp_path / "line2"))
    with running_box(settings) as box:

        def loaded() -> list[str]:
            return [b["name"] for b in box.get("/bundles").json["bundles"] if b["loaded"]]

        assert len(loaded()) == 1
        assert [list(b["classes"]) for b in box.get("/bundles").json["bundles"]] == [["bottle"], ["bottle"]]
        for name in ("line1", "line2", "line1"):
            assert box.inspect(png(1), f"?bundle={name}").json["bundle"] == name
        assert loaded() == ["line1"]
        for class_name in ("x", "bottle"):  # in none of them; in both, of which one is closed
            told = box.form("/inspect", [("photo", png(1)), ("class", class_name)])
            assert "say which" in told.json["error"]


def test_the_openapi_document_names_every_door(box: Box) -> None:
    paths = json.loads(box.get("/openapi.json").body)["paths"]
    for path in ("/inspect", "/inspect/batch", "/bundles", "/verdicts", "/health", "/v2/models/{name}/infer"):
        assert path in paths


def test_a_lost_gpu_costs_one_photo_and_a_worker(bundle: Path) -> None:
    """After an illegal access every call of a process fails, whatever its photo: a new one must judge the next."""
    with running_box(touchy_settings(bundle, group=1), open_losing) as box:
        assert box.inspect(png(1)).status == 200
        guilty = box.inspect(png(2, NAN))
        assert guilty.status == 500
        assert "exit code 70" in guilty.json["error"]
        assert [box.inspect(png(seed)).status for seed in (3, 4)] == [200, 200]
        assert box.get("/health").json["worker_restarts"] == 1
