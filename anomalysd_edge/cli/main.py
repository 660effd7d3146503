"""The command `sd-edge`: the table of verbs, each imported when it is called, and what becomes of errors."""

from __future__ import annotations

import os
import signal
import sys
import warnings
from importlib import import_module
from io import TextIOWrapper
from pathlib import Path
from typing import Annotated, Any

import typer
from typer import Option
from typer.core import TyperGroup

from anomalysd_edge import __version__
from anomalysd_edge.errors import InputError, SDEdgeError, missing_extra

VERBS = {
    "quickstart": ("system.quickstart", "Train, export, verify and measure in one go."),
    "demo": ("system.demo", "Run the whole chain on rendered parts (6 minutes)."),
    "doctor": ("system.doctor", "Show what this machine can run, and what is missing."),
    "train": ("model.train", "Fine-tune on a few good photos of every class."),
    "distill": ("model.distill", "Distil a run to 1 to 4 UNet passes."),
    "export": ("model.export", "Export a run to a bundle: ONNX graphs and thresholds."),
    "teach": ("model.teach", "Teach a bundle a class from good photos, untrained."),
    "add-class": ("model.teach", "Older spelling of teach."),
    "versions": ("model.versions", "List what a bundle was before, and go back."),
    "calibrate": ("quality.calibrate", "Refit thresholds and settings from good photos."),
    "verify": ("quality.verify", "Compare scores and verdicts of two backends."),
    "build": ("engines.build", "Build fp16, int8 and fp8 graphs, TensorRT engines."),
    "sign": ("engines.sign", "Sign a bundle with an ed25519 key."),
    "inspect": ("inspect.inspect", "Inspect photos: score, verdict, heat map, repaint."),
    "eval": ("quality.evaluate", "Measure AUROC, AUPRO, F1-max, AP on labelled photos."),
    "protocol": ("quality.protocol", "Train and measure over numbers of shots and seeds."),
    "bench": ("bench.bench", "Measure latency, throughput and memory, by stage."),
    "serve": ("box.serve", "Serve bundles over HTTP, KServe v2, MQTT; with a page."),
    "watch": ("box.watch", "Inspect the photos that arrive in a folder."),
    "history": ("history.history", "List, export and re-inspect recorded verdicts."),
    "hub": ("fleet.hub", "Write a bundle as a model hub expects it, with its card."),
    "push": ("fleet.push", "Upload a bundle to a registry or a model hub."),
    "pull": ("fleet.pull", "Download a bundle from there and switch to it."),
    "rollback": ("fleet.rollback", "Return to the version in use before the last pull."),
    "fleet": ("fleet.fleet", "Show the state of many boxes."),
    "plan-capacity": ("fleet.plan_capacity", "Estimate how many boxes a photo rate needs."),
}
"""By verb: module and function (or group) in this package, and its line in the list of verbs."""
EXTRA_OF = {
    "onnxruntime": "cpu", "onnx": "export", "onnxscript": "export", "polygraphy": "rtx", "ray": "ray",
    "fsspec": "fleet", "fastapi": "serve", "starlette": "serve", "uvicorn": "serve", "python_multipart": "serve",
    "yaml": "anomalib", "prometheus_client": "serve", "paho": "serve", "cryptography": "serve",
    "huggingface_hub": "hub",
}  # fmt: skip
"""By package that may be missing: the extra that brings it; of all others it is train."""


class Verbs(TyperGroup):
    """Commands that are imported one at a time, so that help and errors come at once."""

    def list_commands(self, ctx: Any) -> list[str]:  # noqa: ARG002
        """Names, in the order of work."""
        return list(VERBS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:  # noqa: ARG002
        """The verb, imported; None for another word."""
        if cmd_name not in VERBS:
            return None
        place, summary = VERBS[cmd_name]
        module, _, name = place.partition(".")
        found = getattr(import_module(f"{__package__}.{module}"), name)
        if isinstance(found, typer.Typer):
            command = typer.main.get_command(found)
        else:
            from anomalysd_edge.cli.options import Verb

            one = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)
            one.command(cmd_name, cls=Verb)(found)
            command = typer.main.get_command(one)
        command.name, command.short_help = cmd_name, summary
        return command

    def format_commands(self, ctx: Any, formatter: Any) -> None:  # noqa: ARG002
        """The list of verbs from the table alone: nothing is imported."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, summary) for name, (_, summary) in VERBS.items()])


app = typer.Typer(
    name="sd-edge",
    cls=Verbs,
    help="Few-shot anomaly detection by repainting with Stable Diffusion, for edge boxes.\n\n"
    "photos of good parts -> train -> RUN -> export -> BUNDLE -> inspect\n\n"
    "Exit codes: 0 done, 1 the answer is no (verify failed), 2 wrong use or input.",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


@app.callback(invoke_without_command=True)
def root(
    version: Annotated[bool, Option("--version", help="Print the version and stop.")] = False,
    debug: Annotated[bool, Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """Options before the verb."""
    if version:
        print(f"anomalysd-edge {__version__}")
        raise typer.Exit
    if debug:
        os.environ["SD_EDGE_DEBUG"] = "1"


def _show_warning(message: Warning | str, category: type[Warning], *_: object, **_named: object) -> None:
    """A warning as one sentence, without the line of code that gave it."""
    print(str(message) if issubclass(category, UserWarning) else f"{category.__name__}: {message}", file=sys.stderr)


def main() -> None:
    """Entry point: every error raised on purpose becomes one sentence on stderr and exit code 2."""
    warnings.showwarning = _show_warning
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):  # a terminal without a photo's letters gets their escapes
            stream.reconfigure(errors="backslashreplace")
    if sys.stdout is None:  # closed by whoever started us: what would be printed goes nowhere
        sys.stdout = Path(os.devnull).open("w")  # noqa: SIM115
    try:
        try:
            app()
        finally:
            if type(sys.stdout).__name__ == "PacifyFlushWrapper":  # typer caught a pipe that closed, and says "no" (1)
                raise BrokenPipeError
            sys.stdout.flush()
    except BrokenPipeError:  # whoever read, `head` for instance, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        sys.exit(128 + signal.SIGPIPE)
    except SDEdgeError as error:
        _stop(error, str(error))
    except ModuleNotFoundError as error:
        name = error.name or "?"
        _stop(error, str(missing_extra(name, EXTRA_OF.get(name, "train"))))
    except OSError as error:
        _stop(error, str(InputError(f"{error.strerror or error}: {error.filename or 'the system gave no file name'}")))
    except KeyboardInterrupt:
        print("stopped; what was finished before is kept, nothing is half-written", file=sys.stderr)
        sys.exit(130)


def _stop(error: BaseException, sentence: str) -> None:
    if os.environ.get("SD_EDGE_DEBUG"):
        raise error
    print(f"sd-edge: {sentence}", file=sys.stderr, flush=True)
    sys.exit(2)


if __name__ == "__main__":
    main()
