"""Subcommand prepare: photos, a trained run and its bundle, which parity, engines, naive, bench and soak work on.

It needs no GPU: made beforehand in --work and brought along, it saves its minutes on the machine that has one.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.gpu.claims import Claim, Kit, Lines, Part

CLASS = "demo_washer"
SHOTS, GOOD, BAD = 4, 10, 10
STEPS = 60
"""Of training: as many as it takes to repaint a part; what is compared does not depend on how well."""
CLAIMS = (
    Claim("prepare.bundle", "the run's graphs agree with torch in float32", "every network within its tolerance"),
    Claim("prepare.half", "the bundle's graphs were brought to fp16", "one of every network"),
)


@dataclass(frozen=True)
class Prepared:
    """What lies in the folder."""

    data: Path
    """Photos of one class: four to train on, twenty to test."""
    run: Path
    bundle: Path

    def test_photos(self) -> list[Path]:
        """The good ones, then the bad ones."""
        from anomalysd_edge.vision import images

        return [
            file for folder in sorted((self.data / CLASS / "test").iterdir()) for file in images.list_images(folder)
        ]


def places(kit: Kit) -> Prepared:
    """Where they lie, made or not."""
    return Prepared(kit.work / "data", kit.work / "run", kit.work / "bundle")


def prepared(kit: Kit) -> Prepared:
    """What prepare made; made now where it is not there. Raises what training and exporting raise."""
    found = places(kit)
    if not (found.data / CLASS).is_dir():
        _render(found.data)
    if not (found.run / "run.json").is_file():
        from anomalysd_edge.workflows.train import train_on

        chosen: dict[str, Any] = {
            "shots": SHOTS, "steps": 2 if kit.rehearsal else STEPS, "decoder_steps": 0, "device": kit.device,
            "autocast": "none",
        }  # fmt: skip
        train_on(found.data, found.run, "nano", chosen, None, None, None, False, _silent)
    if not (found.bundle / "manifest.json").is_file():
        from anomalysd_edge.workflows.export import export_to

        export_to(found.run, found.bundle, None, None, _silent)
    from anomalysd_edge.bundle.reader import read_bundle
    from anomalysd_edge.workflows.build import BuildRequest, build

    if "fp16" not in read_bundle(found.bundle, verify=False).manifest.precisions:
        build(BuildRequest(bundle=found.bundle, engine="onnx", precision="fp16"), _silent)
    return found


def _render(folder: Path) -> None:
    """One class of the demo's parts in the layout of a data set."""
    from anomalysd_edge.core.files import folder_aside
    from anomalysd_edge.demo.dataset import render_part
    from anomalysd_edge.vision import images

    with folder_aside(folder) as aside:
        for number in range(SHOTS):
            images.save_png(
                aside / CLASS / "train/good" / f"{number}.png", render_part(CLASS, (1, number), 192).photo()
            )
        for number in range(GOOD):
            images.save_png(aside / CLASS / "test/good" / f"{number}.png", render_part(CLASS, (2, number), 192).photo())
        for number in range(BAD):
            bad = render_part(CLASS, (3, number), 192, "colour")
            images.save_png(aside / CLASS / "test/colour" / f"{number}.png", bad.photo())
            images.save_png(aside / CLASS / "ground_truth/colour" / f"{number}_mask.png", bad.mask)


def _silent(_phase: str, _done: int, _total: int, _detail: str) -> None:
    pass


def prepare(kit: Kit, lines: Lines) -> None:
    """Show CLAIMS."""
    from anomalysd_edge.bundle.reader import read_bundle

    manifest = read_bundle(prepared(kit).bundle).manifest
    apart = {name: [record.parity["max_abs"], record.tolerance] for name, record in manifest.networks.items()}
    lines.shown("prepare.bundle", apart, all(found <= most for found, most in apart.values()))
    half = sorted(manifest.precisions["fp16"].networks)
    lines.shown("prepare.half", half, half == sorted(manifest.networks))


PARTS = (Part("prepare", "photos, a run and its bundle; kept in --work", 150, ("training", "export"), CLAIMS, prepare),)
