"""A protocol over shots and seeds in seconds: its training is real and tiny, its export copies small graphs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from anomalysd_edge.bundle.reader import MANIFEST, Bundle
from anomalysd_edge.core.files import read_json, sha256_file, write_json
from anomalysd_edge.core.types import Progress
from anomalysd_edge.workflows import protocol
from anomalysd_edge.workflows import train as train_workflow
from anomalysd_edge.workflows.open_options import InspectOptions
from anomalysd_edge.workflows.protocol import ProtocolRequest
from tests.support.data_sets import bottle_data_set
from tests.support.small_graphs import small_bundle
from tests.support.tiny_models import tiny_base


def small_protocol(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ProtocolRequest:
    """Two numbers of shots and two seeds; the export is a bundle of five small graphs."""

    def export(run: Path, out: Path, _classes: Path | None, _threads: int | None, progress: Progress) -> Bundle:
        progress("export", 1, 1, "done")
        bundle = small_bundle(out)
        manifest = read_json(out / MANIFEST)
        write_json(out / MANIFEST, {**manifest, "training": {"run_sha256": sha256_file(run / "run.json")}})
        return bundle

    def train(data: Path, out: Path, base: str, chosen: dict[str, Any], *rest: Any) -> Any:
        return train_workflow.train_on(data, out, base, {**chosen, "decoder_steps": 0, "copies": 1}, *rest)

    monkeypatch.setattr(protocol, "export_to", export)
    monkeypatch.setattr(protocol, "train_on", train)
    return ProtocolRequest(
        data=bottle_data_set(tmp_path / "DATA"),
        out=tmp_path / "OUT",
        dataset="mvtec-ad",
        classes=("bottle",),
        shots=(1, 0),
        seeds=("first", "5"),
        base=str(tiny_base(tmp_path / "base")),
        steps=1,
        options=InspectOptions(threads=1),
    )
