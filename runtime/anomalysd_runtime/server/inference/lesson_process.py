"""The process that changes a bundle, at low priority on the CPU: inspections go on, and a crash costs nothing."""

from __future__ import annotations

import multiprocessing
import os
import signal
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from anomalysd_edge.bundle.acceptance import AcceptedClass, LineLesson, NothingProposed, accept
from anomalysd_edge.bundle.reader import read_bundle
from anomalysd_edge.bundle.teaching import Lesson, TaughtClass, teach
from anomalysd_edge.bundle.versions import BundleBusy, changing
from anomalysd_edge.core.files import clear_asides
from anomalysd_edge.errors import InputError, SDEdgeError
from anomalysd_runtime.server.errors import BadRequest, Conflict, Failed, Unavailable
from anomalysd_runtime.server.settings import EngineSettings

LIMIT_S = 600.0
"""A lesson that takes longer is given up."""
NICENESS = 10
"""Added to the process's own: inspections come first."""


class LessonProcess:
    """Runs one lesson at a time; run() blocks, kill() may be called from any thread."""

    def __init__(self, settings: EngineSettings) -> None:
        self._settings = settings
        self.process: Any = None
        self.stopping = False

    def run(self, path: Path, lesson: Lesson | LineLesson) -> Any:
        """The TaughtClass or AcceptedClass of a lesson. Raises ServeError; the bundle is then what it was."""
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        self.process = process = context.Process(
            target=_main, args=(theirs, path, lesson, self._settings), name="sd-edge-teacher", daemon=True
        )
        process.start()
        theirs.close()
        try:
            if not ours.poll(LIMIT_S):
                raise Failed(f"the lesson took longer than {LIMIT_S:g} s and was given up; the bundle is what it was")
            kind, value = ours.recv()
        except (EOFError, OSError) as error:
            if self.stopping:
                raise Unavailable("the box is stopping; teach after its restart", retry_after_s=5) from error
            process.join(5)
            raise Failed(f"the teaching process died (exit code {process.exitcode}); see the box's log") from error
        finally:
            process.kill()
            process.join()
            ours.close()
            self.process = None
            clear_asides(path)
        if kind == "done":
            return value
        raise {"refused": Conflict, "input": BadRequest}.get(kind, Failed)(value)

    def kill(self) -> None:
        """End a lesson that runs; the bundle is then the old or the new one, whole."""
        self.stopping = True
        process = self.process
        if process is not None:
            process.kill()


def _main(pipe: Connection, path: Path, lesson: Lesson | LineLesson, settings: EngineSettings) -> None:
    """The process. Ctrl-C and SIGTERM reach the parent, which decides."""
    from anomalysd_runtime.onnx.networks import OnnxNetworks

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.nice(NICENESS)
    done: TaughtClass | AcceptedClass
    try:
        with changing(path):
            bundle = read_bundle(path, public_key=settings.public_key)
            with OnnxNetworks.of_bundle(bundle, "cpu", settings.threads) as networks:
                if isinstance(lesson, Lesson):
                    done = teach(bundle, networks, lesson, None)
                else:
                    done = accept(bundle, networks, lesson)
        answer: tuple[str, Any] = ("done", done)
    except (BundleBusy, NothingProposed) as error:
        answer = ("refused", str(error))
    except InputError as error:
        answer = ("input", str(error))
    except SDEdgeError as error:
        answer = ("error", str(error))
    except Exception as error:  # an internal fault fails this lesson only, and its kind is reported
        answer = ("error", f"{type(error).__name__}: {error}")
    pipe.send(answer)
