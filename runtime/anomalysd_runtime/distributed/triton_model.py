"""The inspection as a model of Triton's Python backend: photos in, verdicts out, the Detector in between.

`triton_python_backend_utils` exists only inside Triton; it is imported when the model is loaded.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load

from anomalysd_edge.bundle.detector_factory import detector_of
from anomalysd_edge.bundle.manifest import manifest_from_json
from anomalysd_edge.bundle.reader import (
    CONSTANTS,
    MANIFEST,
    NEGATIVE_PROMPT,
    Bundle,
    check_constants,
    check_preprocessing,
)
from anomalysd_edge.core.files import read_json, sha256_file
from anomalysd_edge.core.types import U8, Array
from anomalysd_edge.errors import BackendError, BundleError, InputError, SDEdgeError
from anomalysd_edge.method.result import Inspection
from anomalysd_edge.reports.inspection import verdict
from anomalysd_edge.vision.images import decode_rgb
from anomalysd_runtime.distributed.triton_networks import TritonNetworks
from anomalysd_runtime.server.inference.worker import judge


def read_without_graphs(path: Path) -> Bundle:
    """A bundle whose graphs are elsewhere: manifest and constants, checked as read_bundle does. Raises BundleError."""
    manifest = manifest_from_json(read_json(path / MANIFEST), str(path / MANIFEST))
    (expected,) = [record.sha256 for record in manifest.files if record.path == CONSTANTS] or [""]
    if sha256_file(path / CONSTANTS) != expected:
        raise BundleError(f"{path / CONSTANTS} is not what its manifest says: export the repository again")
    constants = load((path / CONSTANTS).read_bytes())
    check_constants(constants, manifest, path / CONSTANTS)
    check_preprocessing(manifest, path / MANIFEST)
    return Bundle(path, manifest, constants)


class TritonPythonModel:
    """The class that Triton looks for in model.py."""

    def initialize(self, args: Mapping[str, str]) -> None:
        """Read manifest and constants. The networks are first called by a request: Triton allows it only there."""
        import triton_python_backend_utils as pb_utils

        self._pb = pb_utils
        config = json.loads(args["model_config"])
        parameters = {key: entry["string_value"] for key, entry in config["parameters"].items()}
        self._names = parameters["networks"]
        self._group = int(config["max_batch_size"])
        bundle = read_without_graphs(Path(args["model_repository"]) / "bundle")
        width = bundle.constants[NEGATIVE_PROMPT].shape[-1]
        networks = TritonNetworks(
            self._call, bundle.manifest.sizes, width, int(parameters["max_batch"]), parameters["backend"]
        )
        self._detector = detector_of(bundle, networks, parameters["preset"])
        self._detector.group = self._group

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """An answer a request, in order; the photos of all of them are judged together."""
        photos: list[U8] = []
        names: list[str] = []
        spans: list[tuple[int, int] | str] = []
        for request in requests:
            try:
                read, classes = self._read(request)
            except SDEdgeError as error:
                spans.append(str(error))
                continue
            spans.append((len(photos), len(photos) + len(read)))
            photos += read
            names += classes
        found: list[Inspection | str] = []
        for start in range(0, len(photos), self._group):
            part = slice(start, start + self._group)
            found += judge(self._detector, photos[part], names[part], [True] * len(photos[part]))
        return [self._response(span if isinstance(span, str) else found[slice(*span)]) for span in spans]

    def finalize(self) -> None:
        """Nothing to give back."""

    def _read(self, request: Any) -> tuple[list[U8], list[str]]:
        get = self._pb.get_input_tensor_by_name
        files = [bytes(data) for data in get(request, "photo").as_numpy().ravel()]
        given = get(request, "class")
        known = sorted(self._detector.classes)
        if given is None and len(known) != 1:
            raise InputError(f"say which class the photo is of, in the input 'class': {', '.join(known)}")
        names = [data.decode("utf-8", "replace") for data in given.as_numpy().ravel()] if given is not None else known
        names = names * len(files) if len(names) == 1 else names
        if len(names) != len(files):
            raise InputError(f"{len(files)} photos came with {len(names)} classes; give one for all, or one each")
        unknown = sorted({name for name in names if name not in known})
        if unknown:
            raise InputError(f"class {unknown[0][:200]!r} is not in this bundle; it holds: {', '.join(known)}")
        return [decode_rgb(data) for data in files], names

    def _response(self, found: Sequence[Inspection | str] | str) -> Any:
        failed = [found] if isinstance(found, str) else [each for each in found if isinstance(each, str)]
        if failed:
            return self._pb.InferenceResponse(output_tensors=[], error=self._pb.TritonError(failed[0]))
        answers = [each for each in found if isinstance(each, Inspection)]
        values: dict[str, Array] = {
            "pred_score": np.array([[a.pred_score] for a in answers], np.float32),
            "pred_label": np.array([[-1 if a.pred_label is None else a.pred_label] for a in answers], np.int32),
            "threshold": np.array([[_or_nan(a.threshold)] for a in answers], np.float32),
            "verdict": np.array([[verdict(a).encode()] for a in answers], object),
            "pred_probability": np.array([[_or_nan(a.pred_probability)] for a in answers], np.float32),
            "limits": np.array(
                [[np.nan] * 2 if a.limits is None else [a.limits.good, a.limits.anomalous] for a in answers], np.float32
            ),
            "anomaly_map": np.stack([a.anomaly_map for a in answers]),
            "pred_mask": np.stack([_mask(a) for a in answers]),
        }
        return self._pb.InferenceResponse(
            output_tensors=[self._pb.Tensor(name, value) for name, value in values.items()]
        )

    def _call(self, network: str, inputs: Mapping[str, Array], output: str) -> Array:
        pb = self._pb
        response = pb.InferenceRequest(
            model_name=f"{self._names}_{network}",
            requested_output_names=[output],
            inputs=[pb.Tensor(name, value) for name, value in inputs.items()],
            # A GPU model's output would stay there, where numpy does not reach.
            preferred_memory=pb.PreferredMemory(pb.TRITONSERVER_MEMORY_CPU, 0),
        ).exec()
        if response.has_error():
            raise BackendError(f"the model {self._names}_{network} failed: {response.error().message()}")
        found: Array = pb.get_output_tensor_by_name(response, output).as_numpy()
        return found


def _or_nan(value: float | None) -> float:
    return np.nan if value is None else value


def _mask(answer: Inspection) -> Array:
    return np.zeros(answer.anomaly_map.shape, np.bool_) if answer.pred_mask is None else answer.pred_mask
