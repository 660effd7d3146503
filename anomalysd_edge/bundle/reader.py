"""The bundle: one folder that holds everything an inspection needs, and can prove that it does.

    manifest.json           see manifest.py
    NETWORK/model.onnx      unet, vae_encoder, vae_decoder, perceptual, features (+ model.onnx.data when large)
    precisions/KIND-.../NETWORK.onnx, engines/FINGERPRINT/NETWORK.plan    optional, see engine_records.py
    constants.safetensors   prompts/CLASS/whole, prompts/CLASS/detail, prompts/negative: (77,D) float32;
                            prototypes/CLASS, prototypes/CLASS/coarse: (B,Df) float16, absent for a class without
                            photos; the second is of the photo at one window, where CLASS is seen at two sizes;
                            patch_foreground/CLASS: (D+1,) float32, for features that tell an object from its
                            background (patch_foreground.py) alone;
                            correction/...: weights of the distance correction, absent for features without one;
                            reading/...: weights of the patch scorer (patch_scorer.py), absent for features without one

Class names are percent-encoded in tensor names. There is no pickle anywhere.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from urllib.parse import quote

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError
from safetensors.numpy import load as load_tensors

from anomalysd_edge.bundle.manifest import RESIZE_KERNEL, FileRecord, GoldenResize, Manifest, manifest_from_json
from anomalysd_edge.bundle.signing import check_signature
from anomalysd_edge.core.files import parse_json, sha256_bytes, sha256_file
from anomalysd_edge.core.types import F32, Array
from anomalysd_edge.data.classes import ClassSpec
from anomalysd_edge.errors import BundleError, ClassError, InputError
from anomalysd_edge.method.inpainting.schedule import NoiseSchedule
from anomalysd_edge.vision.images import resize

MANIFEST = "manifest.json"
CONSTANTS = "constants.safetensors"
NETWORKS = ("unet", "vae_encoder", "vae_decoder", "perceptual", "features")
"""Every graph that a bundle may hold; the last two are optional."""
NEGATIVE_PROMPT = "prompts/negative"
GOLDEN_IMAGES = ((1, 97, 131), (2, 40, 56), (3, 301, 203))
"""(seed, height, width) of the golden resizes: smaller, larger, upright and lying."""


def prompt_key(class_name: str, level: str) -> str:
    """Tensor name of a class's prompt states; level is 'whole' or 'detail'."""
    return f"prompts/{quote(class_name, safe='', errors='surrogateescape')}/{level}"


def prototypes_key(class_name: str, coarse: bool = False) -> str:
    """Tensor name of a class's bank of normal features; `coarse` is that of the photo's smaller size."""
    return f"prototypes/{quote(class_name, safe='', errors='surrogateescape')}{'/coarse' if coarse else ''}"


def patch_foreground_key(class_name: str) -> str:
    """Tensor name of what tells a class's objects from their background (PatchForeground.tensors)."""
    return f"patch_foreground/{quote(class_name, safe='', errors='surrogateescape')}"


@dataclass(frozen=True)
class Bundle:
    """A bundle that was read and checked."""

    path: Path
    """Its folder."""
    manifest: Manifest
    """What it says about itself."""
    constants: Mapping[str, Array]
    """The tensors of constants.safetensors by name."""

    def network_file(self, name: str, precision: str = "fp32") -> Path:
        """Path of the graph `name` in `precision`. Raises BundleError where the bundle has no such graph."""
        if name not in self.manifest.networks:
            raise BundleError(
                f"{self.path} has no network {name!r}; it has {', '.join(sorted(self.manifest.networks))}"
            )
        if precision == "fp32":
            return inside(self.path, self.manifest.networks[name].file)
        variants = {kind: record for kind, record in self.manifest.precisions.items() if record.networks}
        if precision not in variants or name not in variants[precision].networks:
            raise BundleError(
                f"{self.path} has no {precision} graph of {name!r}, it has {', '.join(['fp32', *variants])}: make it "
                f"with 'sd-edge build {self.path} --engine onnx --precision {precision}'"
            )
        return inside(self.path, variants[precision].networks[name].file)

    def graph_sha256(self, name: str, precision: str = "fp32") -> str:
        """The digest of a graph and its external weights, from the manifest alone. Raises BundleError."""
        file = self.network_file(name, precision).relative_to(self.path).as_posix()
        digests = {record.path: record.sha256 for record in self.manifest.files}
        return joined_digest(digests[file], digests.get(f"{file}.data"))

    def prompt_states(self, class_name: str, level: str) -> F32 | None:
        """(77,D) float32 text encoder states, or None where the class has no prompt of this level.

        Raises ClassError for a class that the bundle does not know.
        """
        self._check_class(class_name)
        return self.constants.get(prompt_key(class_name, level))

    def prompts(self, class_name: str) -> dict[str, F32]:
        """(77,D) float32 prompt states of a class by level: 'whole' and, where it has named parts, 'detail'."""
        levels = {level: self.prompt_states(class_name, level) for level in ("whole", "detail")}
        return {level: states for level, states in levels.items() if states is not None}

    def specs(self) -> dict[str, ClassSpec]:
        """What is known of every class, as training and calibration take it."""
        records = self.manifest.classes.items()
        return {name: ClassSpec(name, r.noun, r.kind, r.parts, r.symmetries, r.tiles) for name, r in records}

    def schedule(self) -> NoiseSchedule:
        """The noise schedule of the bundle's UNet."""
        config = {**self.manifest.scheduler, "prediction_type": self.manifest.prediction_type}
        return NoiseSchedule.from_config(config)

    def prototypes(self, class_name: str) -> list[F32]:
        """(B,Df) float32 unit vectors of each size of the photo, from the smallest; none for a class without photos.

        Raises ClassError for an unknown class.
        """
        self._check_class(class_name)
        keys = [key for key in (prototypes_key(class_name, True), prototypes_key(class_name)) if key in self.constants]
        banks = [self.constants[key].astype(np.float32) for key in keys]
        # float16 shortened them by up to 0.05%; a cosine must not exceed 1 by more than float32 does.
        return [
            np.asarray(bank / np.maximum(np.linalg.norm(bank, axis=1, keepdims=True), 1e-12), dtype=np.float32)
            for bank in banks
        ]

    def _check_class(self, class_name: str) -> None:
        if class_name not in self.manifest.classes:
            known = ", ".join(sorted(self.manifest.classes))
            raise ClassError(f"{self.path} does not know the class {class_name!r}; it knows {known}")


def joined_digest(graph: str, weights: str | None) -> str:
    """One digest for a graph: its file's, or one over its file's and its external weights'."""
    return graph if weights is None else sha256_bytes((graph + weights).encode())


def inside(root: Path, path: str) -> Path:
    """`root`/`path`, proved to lie inside `root` once links are followed. Raises BundleError."""
    parts = PurePosixPath(path).parts
    wrong = not parts or path.startswith("/") or ".." in parts or "\\" in path or ":" in parts[0] or "\0" in path
    if wrong or not (root / path).resolve().is_relative_to(root.resolve()):
        raise BundleError(f"{root / MANIFEST} names the file {path!r}, which does not lie inside the bundle: refused")
    return root / path


def golden_image(seed: int, height: int, width: int) -> npt.NDArray[np.uint8]:
    """(height,width,3) uint8 noise that any language can make: byte i is the top byte of a 32-bit hash of i and `seed`.

    Modulo 2**32: h = (i + seed * 0x9E3779B9) * 0x85EBCA6B; h ^= h >> 13; h *= 0xC2B2AE35; h ^= h >> 16; byte = h >> 24.
    """
    h = np.arange(height * width * 3, dtype=np.uint32) + np.uint32(seed * 0x9E3779B9 % 2**32)
    h = h * np.uint32(0x85EBCA6B)
    h = (h ^ (h >> np.uint32(13))) * np.uint32(0xC2B2AE35)
    h = h ^ (h >> np.uint32(16))
    return (h >> np.uint32(24)).astype(np.uint8).reshape(height, width, 3)


def golden_resizes(sizes_px: tuple[int, ...]) -> tuple[GoldenResize, ...]:
    """The golden vectors of a bundle whose networks see squares of these sides."""
    return tuple(
        GoldenResize(
            seed, height, width, size_px, sha256_bytes(resize(golden_image(seed, height, width), size_px).tobytes())
        )
        for size_px in sizes_px
        for seed, height, width in GOLDEN_IMAGES
    )


def check_preprocessing(manifest: Manifest, where: Path) -> None:
    """Recompute the golden resizes. Raises BundleError when this machine's resize gives other bytes."""
    kernel = manifest.preprocessing.kernel
    if kernel != RESIZE_KERNEL:
        raise BundleError(
            f"{where} asks for the resize {kernel!r} and this version has only {RESIZE_KERNEL!r}: update it"
        )
    for golden in manifest.preprocessing.golden:
        if (
            min(golden.height, golden.width, golden.size_px) < 1
            or max(golden.height, golden.width, golden.size_px) > 4096
        ):
            raise BundleError(f"{where} has a golden resize of an impossible size, {golden}: export the bundle again")
        image = resize(golden_image(golden.seed, golden.height, golden.width), golden.size_px)
        if sha256_bytes(image.tobytes()) != golden.sha256:
            raise BundleError(
                f"this machine's Pillow resizes a {golden.height}x{golden.width} image to {golden.size_px} px "
                f"differently from the machine that wrote {where}, so scores would differ: install the Pillow release "
                "that it was exported with, or export and calibrate the bundle with this one"
            )


def read_bundle(path: Path, verify: bool = True, public_key: Path | None = None) -> Bundle:
    """Read and check a bundle; `verify=False` skips the digests of the files, never the structure.

    With `public_key` (a PEM file) the manifest must carry its signature, and digests are checked in any case.
    Raises BundleError, naming the file: missing, changed, of a newer schema, outside the bundle, or inconsistent.
    """
    if not path.is_dir():
        raise BundleError(f"{path} is not a folder, expected a bundle: make one with 'sd-edge export RUN --out {path}'")
    where = path / MANIFEST
    if not where.is_file():
        raise BundleError(f"{where} is missing: {path} is no bundle, or an unfinished one; export it again")
    try:
        data = where.read_bytes()
    except OSError as error:
        raise BundleError(f"{where} cannot be read ({error.strerror}): check its permissions") from error
    if public_key is not None:
        check_signature(data, path, public_key)  # of the very bytes that are parsed
    try:
        value = parse_json(data, where)
    except InputError as error:
        raise BundleError(f"{where} cannot be read as JSON ({error}): export the bundle again") from error
    manifest = manifest_from_json(value, str(where))
    for record in manifest.files:
        _check_file(path, record, verify or public_key is not None)
    listed = {record.path for record in manifest.files}
    variants = (entry.file for record in manifest.precisions.values() for entry in record.networks.values())
    for name in (CONSTANTS, *(network.file for network in manifest.networks.values()), *variants):
        if name not in listed:
            raise BundleError(f"{where} does not list {name} among its files, so it cannot be checked: export again")
    missing = [name for name in NETWORKS[:3] if name not in manifest.networks]
    if missing:
        raise BundleError(f"{where} lists no network {' and no '.join(missing)}: export the bundle again")
    check_preprocessing(manifest, where)
    return Bundle(path, manifest, _read_constants(path / CONSTANTS, manifest))


def _check_file(root: Path, record: FileRecord, digest: bool) -> None:
    file = inside(root, record.path)
    if not file.is_file():
        raise BundleError(
            f"{file} is missing although the manifest lists it: copy the bundle again, or export it again"
        )
    found = file.stat().st_size
    if found != record.bytes:
        raise BundleError(f"{file} has {found} bytes and the manifest says {record.bytes}: copy the bundle again")
    if digest and sha256_file(file) != record.sha256:
        raise BundleError(f"{file} was changed since the export (its sha256 differs from the manifest): copy it again")


def _read_constants(file: Path, manifest: Manifest) -> dict[str, Array]:
    try:
        constants: dict[str, Array] = load_tensors(file.read_bytes())
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        raise BundleError(f"{file} is no safetensors file ({error}): export the bundle again") from error
    check_constants(constants, manifest, file)
    return constants


def check_constants(constants: Mapping[str, Array], manifest: Manifest, where: Path) -> None:
    """Every class has its prompts and, if it had photos, its prototypes; no tensor holds NaN. Raises BundleError."""
    needed = [NEGATIVE_PROMPT]
    for name, record in manifest.classes.items():
        needed.append(prompt_key(name, "whole"))
        if record.prompts.detail is not None:
            needed.append(prompt_key(name, "detail"))
        if record.shots > 0 and "features" in manifest.networks:
            needed.append(prototypes_key(name))
    for key in needed:
        if key not in constants:
            raise BundleError(f"{where} has no tensor {key!r}, which the manifest's classes need: export again")
    width = constants[NEGATIVE_PROMPT].shape[-1]
    for key, value in constants.items():
        if not np.isfinite(value).all():
            raise BundleError(f"{where}: the tensor {key!r} holds NaN or Inf: export the bundle again")
        if key.startswith("prompts/") and (value.shape != (77, width) or value.dtype != np.float32):
            raise BundleError(f"{where}: {key!r} is {value.dtype} {value.shape}, expected float32 (77, {width})")
        if key.startswith("prototypes/") and (value.ndim != 2 or value.dtype != np.float16 or not value.size):
            raise BundleError(f"{where}: {key!r} is {value.dtype} {value.shape}, expected float16 (B, D)")
        if key.startswith("patch_foreground/") and (value.ndim != 1 or value.dtype != np.float32 or len(value) < 2):
            raise BundleError(f"{where}: {key!r} is {value.dtype} {value.shape}, expected float32 (D+1,)")


def check_engines(bundle: Bundle) -> None:
    """Raise BundleError unless every engine is as its record says: a signature vouches for them too."""
    for record in bundle.manifest.engines:
        file = bundle.path / record.file
        if not file.is_file() or file.stat().st_size != record.bytes or sha256_file(file) != record.sha256:
            raise BundleError(f"{file} is missing or was changed since it was built: build it again before signing")
