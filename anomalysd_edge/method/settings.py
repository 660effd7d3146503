"""What goes into an inspection (settings, constants of a class) and what comes out of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from anomalysd_edge.errors import SettingsError


@dataclass(frozen=True)
class InspectSettings:
    """How a photo is inspected. Kept whole in the bundle, one a preset."""

    plan: str = "packed"
    """'paper': a slot per cell; 'packed': cells that do not touch share a slot."""
    scales: tuple[int, ...] = (8, 16)
    """K: a k x k grid of masks for each."""
    strength: float = 0.15
    """lambda: repainting starts at lambda*T."""
    grid_steps: int = 0
    """N: DDIM runs the part of an N-step grid below lambda*T, as diffusers does; 0 takes `passes` instead."""
    passes: int = 1
    """UNet passes from lambda*T down, evenly spaced; used where grid_steps is 0."""
    sampler: str = "ddim"
    """'ddim', or 'dpm2m': DPM-Solver++ (2M) over the same timesteps; of one pass both make the same."""
    draws: int = 1
    """Repaints of a slot from different noise, whose latents are averaged: grain that each invents cancels out."""
    guidance_scale: float = 1.0
    """1 = no second pass."""
    prompt: str = "whole"
    """Prompt level that conditions the UNet: 'whole' or 'detail'."""
    reference: str = "round_trip"
    """What a repaint is compared with: the 'photo', its own 'round_trip' through the autoencoder, or 'both'.

    Against the photo, grain that the autoencoder cannot carry looks like a difference; against the round trip, a defect
    too fine for the autoencoder is lost; both gives the geometric mean of the two.
    """
    perceptual_weight: float = 0.0
    """Share of the paper's distance (LPIPS, AlexNet) in the geometric mean that compares repaint and photo."""
    latent_weight: float = 3.0
    """Share of mean |z^ - z| in it: amplitude, which LPIPS divides away."""
    features_weight: float = 1.0
    """Share of 1 - cosine in the prototypes' features in it: forgives grain repainted in another place."""
    cells: str = "all"
    """Which cells of the grids are repainted: 'all'; 'suspect', those over a patch beyond the guided threshold, while
    the rest counts as the normals' centre; 'none', a verdict from prototypes alone. Without prototypes always all.
    """
    cascade: bool = False
    """A photo whose prototypes score below what the class's normals hardly fall short of (`Calibration.clear`) is
    called good without a repaint."""
    settle: bool = False
    """Coarse scales first, and no further repaint of a photo whose verdict no further repaint can change."""
    merge_decode: bool = True
    """Merge a scale's repainted cells in latent space and decode once, in place of one decode a slot."""
    fusion: str = "modulated"
    """'paper': (1-alpha) S_ms + alpha S_pg. 'scaled': calibrated maps, prototypes included, by the weights below.
    'modulated': the prototype map times 1 + the weighted repaint maps, each scaled and within [0, `multiscale_cap`]:
    image scores keep the prototype map's unit, for which the threshold prior was fitted.
    """
    alpha: float = 0.5
    """Weight of S_pg in paper fusion."""
    prototypes_weight: float = 1.0
    """Weight of the prototype distance in scaled fusion."""
    multiscale_weight: float = 0.1
    """Weight of S_ms in scaled and in modulated fusion."""
    multiscale_cap: float = 2.0
    """Largest value of scaled S_ms beside prototypes (1 = what normals hardly reach); 0 = no bound.

    A repaint of a look that the shots did not show differs everywhere; bounded, it cannot raise the alarm alone.
    """
    guided_weight: float = 0.0
    """Weight of S_pg in scaled and in modulated fusion; at 0 it still serves as evidence."""
    prototype_map: str = "corrected"
    """How a patch is scored: by its 'distance' to the memory bank; 'corrected', the distance at two sizes of the photo
    with the bundle's learned correction (distance_correction.py); 'reading', what the bundle's patch scorer makes of
    the distances of all layers (patch_scorer.py). Features without these, DINOv2's say, keep the distance.
    """
    self_share: float = 0.1
    """Textures: the distance counts with the distance to this share of the photo's own patches; 0 = alone."""
    foreground: bool = True
    """Where the class is an object, count nothing outside its outline: grain of the background is no defect."""
    smoothing: float = 1 / 64
    """Sigma of the Gaussian over a score map, as a share of its side."""
    repaint_smoothing: float = 1 / 28
    """The same for S_ms and S_pg: a repaint differs in blotches of about a cell of the finest grid."""
    top_share: float = 0.01
    """Share of highest pixels whose mean is the image score; 0 = the maximum."""
    seed: int = 0
    """Random seed of the noise; a slot's noise is a function of (seed, slot)."""

    def __post_init__(self) -> None:
        for name, allowed in (
            ("plan", ("paper", "packed")),
            ("prompt", ("whole", "detail")),
            ("reference", ("photo", "round_trip", "both")),
            ("fusion", ("paper", "scaled", "modulated")),
            ("sampler", ("ddim", "dpm2m")),
            ("cells", ("all", "suspect", "none")),
            ("prototype_map", ("distance", "corrected", "reading")),
        ):
            if getattr(self, name) not in allowed:
                raise SettingsError(f"{name} is {getattr(self, name)!r}; use one of: {', '.join(allowed)}")
        weights = (self.perceptual_weight, self.latent_weight, self.features_weight)
        if min(weights) < 0 or sum(weights) <= 0:
            raise SettingsError(
                f"the distance's weights (perceptual, latent, features) are {weights}; expected numbers of at least 0, "
                "one above 0"
            )
        if not 0 <= self.alpha <= 1:
            raise SettingsError(f"alpha is {self.alpha}; it must lie in [0, 1]")
        if not 0 <= self.top_share <= 1:
            raise SettingsError(f"top_share is {self.top_share}; it must lie in [0, 1]")
        if self.multiscale_cap < 0:
            raise SettingsError(f"multiscale_cap is {self.multiscale_cap}; it must be at least 0")
        if self.draws < 1:
            raise SettingsError(f"draws is {self.draws}; it must be at least 1")
        if not 0 <= self.self_share < 1:
            raise SettingsError(f"self_share is {self.self_share}; it must lie in [0, 1)")
        if (self.cells == "none" or self.cascade) and (self.fusion == "paper" or self.prototypes_weight <= 0):
            raise SettingsError(
                "cells 'none' and cascade judge photos by prototypes alone: they need another fusion than 'paper' and "
                "a prototypes_weight above 0"
            )
        if not self.scales:
            raise SettingsError("scales is empty; give at least one, for instance 1,2,4,8")

    def to_json(self) -> dict[str, Any]:
        """Plain values, for a manifest."""
        return {**asdict(self), "scales": list(self.scales)}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> InspectSettings:
        """The inverse of to_json. An unknown key raises SettingsError: a typo must not pass as a default."""
        known = {f.name for f in fields(cls)}
        unknown = sorted(set(values) - known)
        if unknown:
            raise SettingsError(f"unknown inspection setting: {', '.join(unknown)}; known: {', '.join(sorted(known))}")
        plain = dict(values)
        if "scales" in plain:
            plain["scales"] = tuple(int(k) for k in plain["scales"])
        return cls(**plain)


PAPER = InspectSettings(
    plan="paper",
    scales=(1, 2, 4, 8),
    strength=0.3,
    grid_steps=50,
    draws=1,
    reference="photo",
    perceptual_weight=1.0,
    latent_weight=0.0,
    features_weight=0.0,
    merge_decode=False,
    fusion="paper",
    prototype_map="distance",
    self_share=0.0,
    foreground=False,
    repaint_smoothing=1 / 64,
)
"""The method as published, with its open settings at their documented defaults."""

EDGE = InspectSettings()
"""The default preset."""

PRESETS = {"paper": PAPER, "edge": EDGE}
