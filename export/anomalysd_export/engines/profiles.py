"""Which batch sizes an engine gets, and how much device memory they will need, foretold from the ONNX graphs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx
from onnx import TensorProto, helper

from anomalysd_edge.bundle.reader import Bundle
from anomalysd_edge.errors import SettingsError
from anomalysd_edge.method.inpainting.mask_plan import batches, make_plan
from anomalysd_edge.method.networks import NetworkSizes
from anomalysd_runtime.static_batches import PIXELS_A_CALL, references_of

VIEWS = frozenset(["Reshape", "Unsqueeze", "Squeeze", "Flatten", "Identity", "Dropout"])
"""Nodes whose output is their input seen otherwise."""
GUIDED_SLOTS = 1
"""A photo with prototypes brings one slot more than its plan has."""


@dataclass(frozen=True)
class Profiles:
    """Static batch sizes by network, and what they were foretold to need."""

    batches: dict[str, tuple[int, ...]]
    """Rising; one optimisation profile each."""
    weights_bytes: int
    """Of all engines together."""
    activations_bytes: int
    """The largest over networks and profiles: networks run one after another and share the room."""
    dropped: tuple[str, ...] = ()
    """Sizes that did not fit the budget, in words."""

    @property
    def peak_bytes(self) -> int:
        """Weights and the largest activations."""
        return self.weights_bytes + self.activations_bytes


def planned_batches(bundle: Bundle, photos: int = 4, largest: int = 16) -> tuple[int, ...]:
    """The UNet batch sizes that the detector will ask for, for one photo and for a group of `photos`, and 1."""
    found = {1}
    for preset in bundle.manifest.presets.values():
        plan = make_plan(str(preset["plan"]), bundle.manifest.sizes.latent_side, tuple(preset["scales"]))
        for count in (1, photos):
            slots = count * (len(plan.slots) + GUIDED_SLOTS)
            found.add(max(part.stop - part.start for part in batches(slots, largest)))
    return tuple(sorted(found))


def choose_profiles(
    files: Mapping[str, Path], sizes: NetworkSizes, asked: Sequence[int], budget_bytes: int | None
) -> Profiles:
    """The sizes of `asked` that fit `budget_bytes` (None: all), network by network.

    Networks of pictures are capped at PIXELS_A_CALL a run, as in ONNX Runtime. Raises SettingsError for a size below 1
    and where not even the smallest size of a network fits.
    """
    if not asked or min(asked) < 1:
        raise SettingsError(f"the batch sizes are {list(asked)}, expected one or more of at least 1")
    graphs = {name: Graph.read(file) for name, file in files.items()}
    weights = sum(graph.weights_bytes for graph in graphs.values())
    chosen: dict[str, tuple[int, ...]] = {}
    dropped: list[str] = []
    largest = 0
    for name, graph in graphs.items():
        fitting = []
        for size in _capped(name, sizes, asked):
            need = graph.activation_bytes(size)
            if budget_bytes is None or weights + need <= budget_bytes:
                fitting.append(size)
                largest = max(largest, need)
            else:
                dropped.append(f"{name} at batch {size} ({(weights + need) / 2**20:.0f} MiB)")
        if not fitting:
            assert budget_bytes is not None
            raise SettingsError(
                f"the memory budget of {budget_bytes / 2**20:.0f} MiB is too small for {dropped[-1]}: give more with "
                "--memory-budget, a smaller --batch, or a lower precision"
            )
        chosen[name] = tuple(fitting)
    return Profiles(chosen, weights, largest, tuple(dropped))


def _capped(name: str, sizes: NetworkSizes, asked: Sequence[int]) -> list[int]:
    if name == "unet":
        return sorted(set(asked))
    side = sizes.features_px if name == "features" else sizes.size_px
    most = max(1, PIXELS_A_CALL // side**2)
    return sorted({min(size, most) for size in asked})


class Graph:
    """An ONNX graph, without its weights, as far as its memory goes."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.model = model
        self.weights_bytes = sum(_bytes(entry.data_type, entry.dims) for entry in model.graph.initializer)

    @classmethod
    def read(cls, file: Path) -> Graph:
        """Read `file` without external weights."""
        return cls(onnx.load(str(file), load_external_data=False))

    def activation_bytes(self, batch: int) -> int:
        """The most bytes of tensors alive at once when nodes run in the graph's order at this batch size.

        Nothing is fused here, so a builder's own plan needs less; what it adds (workspace of a kernel) is not known
        before the build.
        """
        inferred = self.inferred(batch)
        sizes = {
            entry.name: _bytes(
                entry.type.tensor_type.elem_type, [axis.dim_value for axis in entry.type.tensor_type.shape.dim]
            )
            for entry in (*inferred.value_info, *inferred.input, *inferred.output)
        }
        return _peak(inferred, sizes)

    def inferred(self, batch: int) -> onnx.GraphProto:
        """The graph with every shape worked out for this batch size."""
        model = onnx.ModelProto()
        model.CopyFrom(self.model)
        graph = model.graph
        for entry in (*graph.input, *graph.output):
            for axis in entry.type.tensor_type.shape.dim:
                if axis.HasField("dim_param"):
                    axis.dim_value = references_of(batch) if axis.dim_param == "references" else batch
        del graph.value_info[:]
        return onnx.shape_inference.infer_shapes(model, data_prop=True).graph


def _peak(graph: onnx.GraphProto, sizes: Mapping[str, int]) -> int:
    storage: dict[str, str] = {}
    last: dict[str, int] = {}
    for number, node in enumerate(graph.node):
        for name in node.output:
            origin = node.input[0] if node.op_type in VIEWS else name
            storage[name] = storage.get(origin, origin)
        for name in (*node.input, *node.output):
            last[storage.get(name, name)] = number
    for entry in graph.output:
        last[storage.get(entry.name, entry.name)] = len(graph.node)
    ends: dict[int, list[str]] = {}
    for name, number in last.items():
        ends.setdefault(number, []).append(name)
    alive = {entry.name: sizes[entry.name] for entry in graph.input}
    now = most = sum(alive.values())
    for number, node in enumerate(graph.node):
        for name in node.output:
            if storage[name] == name and name not in alive:
                alive[name] = sizes.get(name, 0)
                now += alive[name]
        most = max(most, now)
        for name in ends.get(number, ()):
            now -= alive.pop(name, 0)
    return most


def _bytes(kind: int, axes: Sequence[int]) -> int:
    count = 1
    for axis in axes:
        count *= axis
    if kind in (TensorProto.UNDEFINED, TensorProto.STRING):
        return 0
    return count * int(helper.tensor_dtype_to_np_dtype(kind).itemsize)
