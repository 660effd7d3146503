"""Records of engines that nobody built, for tests of what a bundle says of its engines."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from anomalysd_edge.bundle.engine_records import EngineRecord, Fingerprint
from anomalysd_edge.bundle.reader import Bundle
from anomalysd_edge.core.files import sha256_bytes
from anomalysd_runtime.tensorrt.engine_files import graph_sha256
from anomalysd_runtime.tensorrt.library import RECIPES


def with_engine(bundle: Bundle, **changes: Any) -> Bundle:
    """`bundle` naming an engine of its UNet whose file is not there; `changes` of its fingerprint."""
    mark = Fingerprint(
        "unet", graph_sha256(bundle, "unet", "fp32"), "tensorrt_rtx", "1.7.1", ("sm86",), "fp32", (1, 4), RECIPES["rtx"]
    )
    record = EngineRecord(replace(mark, **changes), "engines/x/unet.plan", 4, sha256_bytes(b"plan"))
    return replace(bundle, manifest=replace(bundle.manifest, engines=(record,)))
