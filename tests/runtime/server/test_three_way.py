"""A class with limits: the third answer over HTTP, v2, a watched folder, the webhook, the record and the metrics."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from statistics import NormalDist

import numpy as np
import pytest

from anomalysd_edge.errors import SettingsError
from anomalysd_runtime.server import lifecycle
from anomalysd_runtime.server.connectors.watch import WatchSettings
from anomalysd_runtime.server.connectors.webhook import Webhook
from anomalysd_runtime.server.records.verdict_store import VerdictStore
from anomalysd_runtime.server.settings import VERDICTS, RecordSettings, WebhookSettings, webhook_settings
from tests.support.command import sd_edge
from tests.support.serving import Box, png, recorded_settings, running_box, small_settings
from tests.support.small_graphs import THREE_WAY, small_bundle
from tests.support.verdicts import verdict

LIMITS = {"good": 1e-3, "anomalous": 1e3}


@pytest.fixture(scope="module")
def three_way(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a bundle whose class has limits so wide that every photo is uncertain."""
    return small_bundle(tmp_path_factory.mktemp("served") / "line1", **THREE_WAY).path


@pytest.fixture(scope="module")
def box(three_way: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Box]:
    record = RecordSettings(tmp_path_factory.mktemp("record") / "record.sqlite")
    with running_box(replace(small_settings(three_way), record=record)) as opened:
        yield opened


def probability(score: float) -> float:
    """Bayes' rule with equal shares, over the two log-normal distributions of THREE_WAY."""
    good, defect = (NormalDist(*of).pdf(np.log(score)) for of in ((-0.5, 0.4), (0.6, 0.5)))
    return defect / (good + defect)


@pytest.mark.net
def test_http_says_uncertain_with_probability_and_limits(box: Box) -> None:
    told = box.inspect(png(1)).json
    assert told["verdict"] == "uncertain"
    assert told["limits"] == LIMITS
    assert told["pred_label"] == int(told["pred_score"] >= told["threshold"]), "two-way stays two-way"
    assert told["pred_probability"] == pytest.approx(probability(told["pred_score"]))
    batch = box.form("/inspect/batch", [("photo", png(1)), ("photo", png(2))]).json["results"]
    assert [item["verdict"]["verdict"] for item in batch] == ["uncertain"] * 2
    assert box.get(f"/verdicts/{told['uid']}").json == {**told, "pictures": {}}
    assert box.get("/bundles").json["bundles"][0]["classes"]["bottle"]["limits"] == LIMITS


@pytest.mark.net
def test_the_schema_names_the_answers_and_the_fields(box: Box) -> None:
    schemas = box.get("/openapi.json").json["components"]["schemas"]
    fields = schemas["VerdictAnswer"]["properties"]
    assert fields["verdict"]["enum"] == ["good", "anomalous", "uncertain", "unknown"]
    assert {"pred_probability", "limits", "pred_label"} <= set(schemas["VerdictAnswer"]["required"])
    assert set(schemas["LimitsAnswer"]["required"]) == {"good", "anomalous"}


@pytest.mark.net
def test_v2_has_an_output_for_each(box: Box) -> None:
    photos = [base64.b64encode(png(seed)).decode() for seed in (1, 2)]
    body = {"inputs": [{"name": "photo", "shape": [2], "datatype": "BYTES", "data": photos}]}
    outputs = box.ask("POST", "/v2/models/line1/infer", json.dumps(body).encode()).json["outputs"]
    found = {each["name"]: each for each in outputs}
    described = {each["name"]: each for each in box.get("/v2/models/line1").json["outputs"]}
    assert set(found) == set(described)
    assert found["verdict"]["data"] == ["uncertain"] * 2
    assert found["limits"]["shape"] == [2, 2]
    assert described["limits"]["shape"] == [-1, 2]
    np.testing.assert_allclose(found["limits"]["data"], [1e-3, 1e3] * 2, rtol=1e-6)
    expected = [probability(score) for score in found["pred_score"]["data"]]
    np.testing.assert_allclose(found["pred_probability"]["data"], expected, rtol=1e-5)


@pytest.mark.net
def test_metrics_count_it_and_the_record_finds_it(box: Box, tmp_path: Path) -> None:
    told = box.inspect(png(7)).json
    store = box.service.store
    assert store is not None
    recorded = len(store.select("verdict = ?", ("uncertain",)))
    counted = f'sd_edge_verdicts_total{{bundle="line1",class_name="bottle",verdict="uncertain"}} {recorded}.0'
    assert counted in box.get("/metrics").body.decode()
    more = ("--verdict", "uncertain", "--limit", "1")
    (shown,) = [
        line for line in sd_edge("history", "list", store.path, *more, cwd=tmp_path).stdout.splitlines()
        if told["uid"] in line
    ]  # fmt: skip
    assert "uncertain" in shown
    assert "0.7500 (0.0010 to 1000.0000)" in shown
    assert f"{100 * told['pred_probability']:.0f} %" in shown
    sd_edge("history", "export", store.path, "--verdict", "uncertain", "--out", "lines", cwd=tmp_path)
    lines = [json.loads(line) for line in (tmp_path / "lines").read_text().splitlines()]
    assert len(lines) == recorded
    assert lines[0]["limits"] == LIMITS


def test_a_watched_folder_puts_it_into_unsure(three_way: Path, tmp_path: Path) -> None:
    (tmp_path / "part.png").write_bytes(png(1))
    where = WatchSettings(tmp_path, poll_s=0.05, settle_s=0.05)
    assert lifecycle.watch(recorded_settings(three_way, tmp_path), where, once=True) == 1
    told = json.loads((tmp_path / "unsure/part.png.json").read_text())
    assert (tmp_path / "unsure/part.png").read_bytes() == png(1)
    assert (told["verdict"], told["limits"]) == ("uncertain", LIMITS)
    # What lies there was judged: another look takes nothing from it.
    assert lifecycle.watch(recorded_settings(three_way, tmp_path), where, once=True) == 0


@pytest.mark.parametrize("words", VERDICTS)
def test_a_webhook_hears_of_the_verdicts_that_were_named(words: str, tmp_path: Path) -> None:
    store = VerdictStore(tmp_path / "record.sqlite")
    for when, heard in (
        ("anomalous", {"anomalous"}),
        ("anomalous,uncertain", {"anomalous", "uncertain"}),
        (" good , unknown", {"good", "unknown"}),
        ("all", set(VERDICTS)),
    ):
        hook = Webhook(store, webhook_settings("http://127.0.0.1:9/", when, None))
        assert hook.wants(verdict(1, verdict=words)) is (words in heard), when
    assert WebhookSettings("http://127.0.0.1:9/").verdicts == {"anomalous", "uncertain"}
    with pytest.raises(SettingsError, match="--webhook-on is 'bad'; use good, anomalous, uncertain, unknown"):
        webhook_settings("http://127.0.0.1:9/", "bad", None)
    store.close()
