"""The detector: the method's inspection, written once, against the protocol networks.Networks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import TracebackType

from anomalysd_edge.core.types import F32, U8
from anomalysd_edge.data.classes import find_class
from anomalysd_edge.errors import ClassError, InputError
from anomalysd_edge.method.class_model import ClassModel
from anomalysd_edge.method.inpainting.mask_plan import Plan
from anomalysd_edge.method.inpainting.schedule import NoiseSchedule, StepTable
from anomalysd_edge.method.inspection_pipeline import InspectionPipeline
from anomalysd_edge.method.networks import Networks
from anomalysd_edge.method.result import Inspection
from anomalysd_edge.method.settings import InspectSettings


class Detector:
    """Judges photos. Holds no state between calls but constants, so two detectors never disturb each other.

    `group` photos share their batches; it changes memory and speed, never a verdict. As a context manager it closes its
    networks at the end.
    """

    def __init__(
        self,
        networks: Networks,
        schedule: NoiseSchedule,
        classes: Mapping[str, ClassModel],
        settings: InspectSettings,
        negative_states: F32 | None = None,
        group: int = 4,
    ) -> None:
        self.networks = networks
        self.classes = classes
        self.settings = settings
        self.group = max(1, group)
        self._schedule, self._negative_states = schedule, negative_states
        self.label = ""
        """Name of the operating point, where one was picked; reported with `mode`."""
        self._default = InspectionPipeline(networks, schedule, settings, negative_states)
        # Classes with settings of their own; those that agree share a plan, and so their photos share batches.
        ways = {settings: self._default}
        self._stages: dict[str, InspectionPipeline] = {}
        for name, constants in classes.items():
            tuned = constants.tuned(settings)
            if tuned not in ways:
                ways[tuned] = InspectionPipeline(networks, schedule, tuned, negative_states)
            self._stages[name] = ways[tuned]

    def over(self, networks: Networks) -> Detector:
        """The same detector over other networks of the same sizes, for instance ones that record what they see."""
        return Detector(networks, self._schedule, self.classes, self.settings, self._negative_states, self.group)

    def under(self, settings: InspectSettings, classes: Mapping[str, ClassModel]) -> Detector:
        """Another detector over the same networks, one photo at a time: other settings, other constants."""
        return Detector(self.networks, self._schedule, classes, settings, self._negative_states, 1)

    @property
    def mode(self) -> str:
        """Plan, scales, lambda and passes in words, for instance 'packed K=2,4,8 lambda=0.4 passes=5'."""
        return self._default.mode

    @property
    def plan(self) -> Plan:
        """The slots of a photo whose class has no settings of its own."""
        return self._default.plan

    def class_of(self, name: str) -> str:
        """The bundle's class that `name` means, in any Unicode form. Raises ClassError, which lists the classes."""
        found = find_class(name, self.classes)
        if found is None:
            raise ClassError(f"class {name!r} is not in this bundle; it holds: {', '.join(sorted(self.classes))}")
        return found

    @property
    def steps(self) -> StepTable:
        """The UNet passes of such a photo."""
        return self._default.steps

    def __enter__(self) -> Detector:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.networks.close()

    def inspect(
        self,
        photos: Sequence[U8],
        class_names: Sequence[str] | str,
        deadline: float | None = None,
        full: Sequence[bool] | bool = True,
    ) -> list[Inspection]:
        """(H,W,3) uint8 photos of any sizes and the class of each (or one for all) -> their inspections, in order.

        Photos of many classes share batches wherever their settings agree, in whatever order they come. `deadline` (on
        time.monotonic's clock) is that of the whole call: repaints that would not be ready by then are left out, and
        every answer says so. A photo that is not `full` is repainted only as far as its verdict needs it, which is that
        of the whole plan. Raises ClassError for a class that the bundle does not hold and NumericError where a network
        gives NaN.
        """
        names = [class_names] * len(photos) if isinstance(class_names, str) else list(class_names)
        if len(names) != len(photos):
            raise InputError(f"{len(photos)} photos came with {len(names)} class names; give one each, or one for all")
        names = [self.class_of(name) for name in names]
        whole = [full] * len(photos) if isinstance(full, bool) else list(full)
        alike: dict[int, list[int]] = {}
        for i, name in enumerate(names):
            alike.setdefault(id(self._stages[name]), []).append(i)
        found: dict[int, Inspection] = {}
        for members in alike.values():
            stages = self._stages[names[members[0]]]
            for start in range(0, len(members), self.group):
                part = members[start : start + self.group]
                mine = [names[i] for i in part]
                answers = stages.inspect(
                    [photos[i] for i in part], mine, [self.classes[name] for name in mine], deadline,
                    [whole[i] for i in part],
                )  # fmt: skip
                found.update(zip(part, answers, strict=True))
        return [found[i] for i in range(len(photos))]
