"""What an export starts from: a training run read into memory, and the text states of its classes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from anomalysd_edge.bundle.manifest import BaseRecord, SourceRecord
from anomalysd_edge.core.files import sha256_file
from anomalysd_edge.core.types import F32, U8
from anomalysd_edge.data.classes import ClassSpec
from anomalysd_edge.errors import RunError
from anomalysd_edge.training.models.base import Base, prompt_states
from anomalysd_edge.training.models.features import features_of
from anomalysd_edge.training.models.perceptual import load_perceptual
from anomalysd_edge.training.prompt_tuning import context_states
from anomalysd_edge.training.run import Run
from anomalysd_edge.vision.images import load_rgb


@dataclass(frozen=True)
class ExportSource:
    """What an export starts from: a run, with everything loaded."""

    base: Base
    """The fine-tuned model."""
    origin: BaseRecord
    """The model that was fine-tuned."""
    size_px: int
    """Side of the square photo that the run was trained at."""
    perceptual: Any
    """Torch module of the distance."""
    features: Any
    """Torch module of the dense features."""
    perceptual_source: SourceRecord
    """Where its weights came from."""
    features_source: SourceRecord
    """Where its weights came from."""
    shots: Mapping[str, Sequence[U8]]
    """(H,W,3) uint8 good photos of every class; none for K = 0."""
    specs: Mapping[str, ClassSpec]
    """The classes."""
    training: Mapping[str, Any] = field(default_factory=dict)
    """For the manifest: digest of run.json, settings."""
    contexts: Mapping[str, Any] = field(default_factory=dict)
    """(M,E) torch context vectors of the classes that learned some: they stand in front of their prompts."""
    round_trip: bool = False
    """Whether every preset compares a photo with its own round trip: a smaller autoencoder took the base's place."""
    few_steps: tuple[float, int] | None = None
    """lambda and passes that the UNet was distilled for; presets of more passes take these."""


def trained_of(
    run: Run, specs: Mapping[str, ClassSpec] | None = None, features_name: str | None = None
) -> ExportSource:
    """Load what `run` left; `specs` replace its classes of the same name. Raises RunError where a photo was changed."""
    base = run.load()
    # The distance that the decoder was trained with; where it needed none, the best that is here.
    perceptual, perceptual_source = load_perceptual(run.perceptual_kind or "auto")
    features, features_source, features_kind = features_of(features_name)
    digests = {run.path / shot["file"]: shot["sha256"] for c in run.record["classes"].values() for shot in c["shots"]}
    for file, digest in digests.items():
        if sha256_file(file) != digest:
            raise RunError(f"{file} was changed since the run was trained on it: restore it, or train again")
    return ExportSource(
        base=base,
        origin=BaseRecord(str(run.record["base"]["name"]), str(run.record["base"]["sha256"])),
        size_px=run.size_px,
        perceptual=perceptual,
        features=features,
        perceptual_source=SourceRecord(perceptual.kind, perceptual_source),
        features_source=SourceRecord(features_kind, features_source),
        shots={name: [load_rgb(file) for file in files] for name, files in run.shots.items()},
        specs={name: (specs or {}).get(name, spec) for name, spec in run.specs.items()},
        training={"run_sha256": run.sha256, "settings": run.settings.to_json()},
        contexts=run.contexts(),
        round_trip=run.round_trip,
        few_steps=run.few_steps,
    )


def class_states(trained: ExportSource) -> tuple[dict[str, dict[str, F32]], F32]:
    """(77,D) text states of every class by level, and those of the empty negative prompt."""
    base = trained.base

    def states(text: str, context: Any = None) -> F32:
        with torch.no_grad():
            found = prompt_states(base, [text]) if context is None else context_states(base, [text], context[None])
        return np.ascontiguousarray(found[0].numpy(), dtype=np.float32)

    found: dict[str, dict[str, F32]] = {}
    for name, spec in trained.specs.items():
        prompts, context = spec.prompts(), trained.contexts.get(name)
        found[name] = {"whole": states(prompts.whole, context)}
        if prompts.detail is not None:
            found[name]["detail"] = states(prompts.detail, context)
    return found, states("")
