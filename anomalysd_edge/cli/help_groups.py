"""Under which headings the help of a verb with many options shows them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

MOST = 12
"""Options that stand under one heading; a verb with more of them is grouped."""
GROUPS = {
    "Photos and classes": (
        "data photos class classes dataset normal-dir abnormal-dir normal-test-dir mask-dir class-file noun shots "
        "shot-seed seeds unlabelled known-bad from-history good per-class synthetic check limit"
    ),
    "Training": "base seed steps decoder-steps batch-size lr lora-rank vae set device resume text-encoder",
    "Graphs and engines": "engine precision size features targets static-batches quantise rebuild host-memory",
    "What errors cost": "missed-cost referral-cost defect-rate false-alarm-rate",
    "What may differ": "labels max-flips max-drop",
    "Measuring": "in-flight rounds warm-up seconds pareto",
    "Record": "record keep max-age-days max-record-size",
    "Networks": (
        "preset backend fallback threads max-batch group deadline-ms photos-per-second memory-budget "
        "queue require-signature on-mismatch full force"
    ),
    "Ray": "ray workers replicas gpus journal",
}
"""By heading: options of any verb. Those of no group, and those that would stand alone, are under Options."""
OWN = {
    "export": {"Triton": "triton name backend preset instances force"},
    "serve": {
        "Access": "token-file allow-host tls-cert tls-key max-body-size rate",
        "Teaching": "sign trusted-width auto",
        "MQTT and webhook": "mqtt mqtt-ca mqtt-prefix webhook webhook-on",
    },
}
"""By verb: headings that go before GROUPS."""


def grouped(verb: str, options: Sequence[Any]) -> Iterator[tuple[str, list[Any]]]:
    """(heading, options) for the shown options of a verb; those under "Options" come first."""
    if len(options) <= MOST:
        yield "Options", list(options)
        return
    headings = {**OWN.get(verb, {}), **GROUPS}
    heading_of = {name: heading for heading, names in reversed(headings.items()) for name in names.split()}
    found: dict[str, list[Any]] = {}
    for option in options:
        heading = heading_of.get(option.opts[0].lstrip("-"), "Options")
        found.setdefault(heading, []).append(option)
    alone = [heading for heading, some in found.items() if len(some) == 1]
    kept = {id(option) for heading, some in found.items() if heading not in ("Options", *alone) for option in some}
    yield "Options", [option for option in options if id(option) not in kept]
    yield from ((heading, some) for heading in headings if len(some := found.get(heading, [])) > 1)
