"""A class's way from four photos to a verdict that one trusts: its state by the record, answers, acceptance.

learning    taught, or exported, and not yet accepted as trusted
proposed    the interval of the balanced error is as narrow as wanted: a person may accept
trusted     accepted; corrections go on making proposals
"""

from __future__ import annotations

import logging
import math
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, Literal

from anomalysd_edge.bundle.acceptance import AcceptedClass, LineLesson, StreamPhoto, prior_of, what_line_says
from anomalysd_edge.calibration.commissioning import LEAST_STREAM, Commissioned, CommissioningSettings, repaint_of
from anomalysd_edge.calibration.score_posterior import LineScores
from anomalysd_edge.data.classes import find_class
from anomalysd_edge.errors import SDEdgeError, SettingsError
from anomalysd_edge.method.class_model import Calibration
from anomalysd_runtime.server.errors import Conflict, NotFound
from anomalysd_runtime.server.inference.bundles import BundleStore, LoadedBundle
from anomalysd_runtime.server.inference.teaching import Teacher
from anomalysd_runtime.server.records.line import ClassHistory, LinePhoto, class_history, line_photos, set_skipped
from anomalysd_runtime.server.records.teachings import class_photos, count_photos
from anomalysd_runtime.server.records.verdict_cache import VerdictCache
from anomalysd_runtime.server.records.verdict_store import VerdictStore
from anomalysd_runtime.server.settings import ServeSettings
from anomalysd_runtime.server.verdicts import Correction, Verdict

log = logging.getLogger("sd-edge.commissioning")
QUESTIONS = 5
"""Photos that are asked about at a time."""
CHANGES = 50
"""Photos whose verdict would change that are listed, the newest."""
MOST_REJUDGED = 60
"""Photos without an answer that are judged again under a new bank: the newest. Each is repainted in full."""
AUTO_EVERY = 5
"""Verdicts of a class after which `--auto` looks whether it can be accepted."""
State = Literal["learning", "proposed", "trusted"]


@dataclass(frozen=True)
class ClassCommissioning:
    """What is known of a class at a moment."""

    loaded: LoadedBundle
    """Its bundle."""
    name: str
    """As the bundle spells it."""
    calibration: Calibration
    """In use."""
    history: ClassHistory
    """How it came to be."""
    photos: tuple[LinePhoto, ...]
    """Its stream, the newest first."""
    open: tuple[LinePhoto, ...]
    """Those without an answer that count as the stream, in the order of Question.number."""
    found: Commissioned | None
    """What follows; None where too little was seen, or nothing can be fitted."""
    proposed: Calibration | None
    """None where nothing is proposed."""
    reason: str
    """One sentence."""

    @property
    def state(self) -> State:
        """In a word."""
        if self.history.trusted:
            return "trusted"
        return "proposed" if self.found is not None and self.found.trusted else "learning"

    def labelled(self, label: str) -> list[LinePhoto]:
        """Photos of which a person said so."""
        return [photo for photo in self.photos if photo.label == label]

    def scores(self) -> LineScores:
        """What the posterior is made of."""
        return LineScores(
            unlabelled=tuple(photo.score for photo in self.open),
            good=tuple(photo.score for photo in self.labelled("good")),
            defective=tuple(photo.score for photo in self.labelled("bad")),
            known_bad=tuple(photo.score for photo in self.labelled("known-bad")),
        )


class Commissioner:
    """Reads the record for a class's state, takes answers, and accepts. Methods may be called from any thread."""

    def __init__(
        self,
        settings: ServeSettings,
        bundles: BundleStore,
        store: VerdictStore | None,
        cache: VerdictCache,
        teacher: Teacher,
    ) -> None:
        self._settings, self._bundles, self._teacher = settings, bundles, teacher
        self._store, self._cache = store, cache
        self._wanted = CommissioningSettings(width=settings.trusted_width)
        self._learning: dict[tuple[str, str], bool] = {}
        self._fits: dict[tuple[str, str], tuple[Any, ClassCommissioning]] = {}
        self._count: dict[tuple[str, str], int] = {}
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="sd-edge-auto")
        self._lock = threading.Lock()

    def learning(self, loaded: LoadedBundle, class_name: str) -> bool:
        """Whether a class was taught here and is not trusted: its photos are repainted in full, to be comparable."""
        if self._store is None:
            return False
        key = (loaded.key, class_name)
        if key not in self._learning:
            history = class_history(self._store, loaded.name, class_name, loaded.bundle_id)
            self._learning[key] = history.made_here and not history.trusted
        return self._learning[key]

    def look(self, bundle: str | None, class_name: str) -> ClassCommissioning:
        """The state of a class. Raises NotFound, Conflict without a record, StoreError."""
        name = self._bundles.resolve(bundle, class_name)
        with self._bundles.in_use(name) as loaded:
            known = find_class(class_name, loaded.classes)
            if known is None:
                raise NotFound(
                    f"class {class_name!r} is not in bundle {name}; it holds: {', '.join(sorted(loaded.classes))}"
                )
            return self._look(loaded, known)

    def answer(self, bundle: str | None, class_name: str, uid: str, said: str | None, at: float) -> ClassCommissioning:
        """Take an answer (good, bad, known-bad, skip, or None to take it back). Raises ServeError, StoreError."""
        store, before = self._recording(), self.look(bundle, class_name)
        verdict = store.by_uid(uid)
        if verdict is None or (verdict.bundle, verdict.class_name) != (before.loaded.name, before.name):
            raise NotFound(f"{uid[:32]!r} is no photo of the stream of {before.name}: it may have been too old to keep")
        correction: Correction | None = "ok" if said == "good" else "ng" if said in ("bad", "known-bad") else None
        store.correct(uid, correction, at).result()
        self._cache.correct(uid, correction)
        set_skipped(store, uid, said in ("skip", "known-bad"))
        self._consider(before.loaded.name, before.name)
        return self.look(bundle, class_name)

    def accept(self, bundle: str | None, class_name: str, seen_id: str, client: str) -> AcceptedClass:
        """Make what is proposed the bundle's. Raises ServeError, StoreError; the bundle is then what it was."""
        store, now = self._recording(), self.look(bundle, class_name)
        if now.proposed is None:
            raise Conflict(f"nothing can be accepted of {now.name}: {now.reason}")
        if now.loaded.bundle_id != seen_id:
            raise Conflict("the bundle was changed since the proposal was made: load it again, and look")
        own, stream = self._photos(store, now)
        lesson = LineLesson(
            name=now.name,
            preset=self._settings.engine.preset,
            scores=now.scores(),
            repaint=now.history.repaint,
            own=own,
            stream=stream,
            settings=self._wanted,
        )
        said = {label: [p.sha256 for p in now.labelled(label)] for label in ("good", "bad", "known-bad")}
        details = {"answers": said, "rates": {"before": rates_json(now.found, "now"), "after": rates_json(now.found)}}
        return self._teacher.accept(now.loaded.name, lesson, client, details, seen_id)

    def on_verdict(self, verdict: Verdict) -> None:
        """With `--auto`: look now and then whether a class can be accepted."""
        key = (verdict.bundle, verdict.class_name)
        with self._lock:
            self._count[key] = self._count.get(key, 0) + 1
            due = self._count[key] % AUTO_EVERY == 0
        if due:
            self._consider(*key)

    def stop(self) -> None:
        """Look no more."""
        self._pool.shutdown(wait=True, cancel_futures=True)

    def joins(self, now: ClassCommissioning) -> str | None:
        """Why photos that are called good do not join the bank; None where they do."""
        if not self._settings.record.keep_photo:
            return "the record keeps no photos (--keep photo)"
        known = now.history.photos
        if self._store is None or not known or count_photos(self._store, known) < len(known):
            return "the class's own photos are not in the record: teach it here to have them there"
        others = [photo for photo in (*now.open, *now.labelled("bad")) if photo.stored]
        if len(others) < LEAST_STREAM:
            return f"{len(others)} photos of the stream are left beside them, and {LEAST_STREAM} are needed"
        return None

    def joining(self, now: ClassCommissioning) -> list[LinePhoto]:
        """Photos that were called good and would be new to the bank; none where `joins` says why they stay out."""
        good = [photo for photo in now.labelled("good") if photo.stored]
        return [] if self.joins(now) is not None else [p for p in good if p.sha256 not in now.history.photos]

    def _recording(self) -> VerdictStore:
        if self._store is None:
            raise Conflict("the box keeps no record, and a class's stream is kept there: start it with --record FILE")
        return self._store

    def _look(self, loaded: LoadedBundle, name: str) -> ClassCommissioning:
        store, preset = self._recording(), self._settings.engine.preset
        calibration = loaded.manifest.classes[name].calibration.get(preset, Calibration())
        history = class_history(store, loaded.name, name, loaded.bundle_id)
        prior = prior_of(None if loaded.manifest.features is None else loaded.manifest.features.kind)
        if history.repaint is None and prior is not None:
            history = replace(history, repaint=repaint_of(calibration, prior))
        photos = tuple(_whole(p, history) for p in line_photos(store, loaded.name, name, preset, history))
        stream = tuple(photo for photo in photos if photo.label is None)
        key = (loaded.key, history, photos)
        with self._lock:
            before = self._fits.get((loaded.key, name))
        if before is not None and before[0] == key:
            return before[1]
        now = ClassCommissioning(loaded, name, calibration, history, photos, stream, None, None, "")
        seen = now.scores()
        count = len(seen.unlabelled) + len(seen.good) + len(seen.defective)
        if count < LEAST_STREAM:
            now = replace(now, reason=f"{count} of {LEAST_STREAM} photos seen: let parts go by")
        else:
            shown = [p for p in stream if p.skipped]
            try:
                found, proposed = what_line_says(
                    calibration, prior, history.repaint, seen, self._wanted, QUESTIONS + len(shown)
                )
                now = replace(now, found=found, proposed=proposed, reason=found.reason)
            except SettingsError as error:
                now = replace(now, reason=str(error))
        with self._lock:
            self._fits = {k: fit for k, fit in self._fits.items() if k[0] == loaded.key or k[1] != name}
            self._fits[loaded.key, name] = (key, now)
        return now

    def _photos(self, store: VerdictStore, now: ClassCommissioning) -> tuple[Sequence[bytes], Sequence[StreamPhoto]]:
        """The image files of a new bank, and of the photos to judge under it; none where the bank stays as it is."""
        if not self.joining(now):
            return (), ()
        good = [photo for photo in now.labelled("good") if photo.stored]
        wrong = [*now.labelled("bad"), *now.labelled("known-bad")]
        # Those that joined at an earlier acceptance are photos of the line as well.
        answered = {photo.sha256 for photo in (*wrong, *good)}
        own = [data for d, data in class_photos(store, now.history.photos).items() if d not in answered]
        kept = [photo for photo in now.open if photo.stored][:MOST_REJUDGED]
        stream = [
            StreamPhoto(photo.uid, data, photo.label)
            for photo in (*kept, *wrong, *good)
            if (data := store.stored_photo(photo.uid)) is not None
        ]
        return own, stream

    def _consider(self, bundle: str, class_name: str) -> None:
        if self._settings.auto and self._store is not None:
            self._pool.submit(self._accept_alone, bundle, class_name)

    def _accept_alone(self, bundle: str, class_name: str) -> None:
        try:
            now = self.look(bundle, class_name)
            if now.state == "proposed" and now.proposed is not None:
                self.accept(bundle, class_name, now.loaded.bundle_id, "auto")
        except SDEdgeError as error:
            log.warning("class %s of %s was not accepted by itself: %s", class_name, bundle, error)


def rates_json(found: Commissioned | None, which: Literal["now", "after"] = "after") -> dict[str, Any] | None:
    """Expected rates, each with the interval that holds it; None where nothing is known."""
    if found is None:
        return None
    rates = found.now if which == "now" else found.after
    each = {"false_alarms": rates.false_alarms, "missed": rates.missed, "balanced": rates.balanced}
    return {name: {"mean": e.mean, "low": e.low, "high": e.high} for name, e in each.items()}


def _whole(photo: LinePhoto, history: ClassHistory) -> LinePhoto:
    """With the image score of the whole plan; of a photo that was clear early, by what the repaint adds to most."""
    return replace(photo, score=photo.score * math.exp(history.repaint or 0.0)) if photo.settled else photo
