"""Models of a hub by id, from this machine's cache or by download; and quiet loading."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from diffusers.utils import logging as diffusers_logging
from transformers.utils import logging as transformers_logging

from anomalysd_edge.errors import InputError


@contextmanager
def quiet() -> Iterator[None]:
    """No progress bars and notices of diffusers and transformers: what goes wrong is raised."""
    diffusers_level, transformers_level = diffusers_logging.get_verbosity(), transformers_logging.get_verbosity()
    bars = diffusers_logging.is_progress_bar_enabled(), transformers_logging.is_progress_bar_enabled()
    diffusers_logging.set_verbosity_error()
    diffusers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            yield
    finally:
        diffusers_logging.set_verbosity(diffusers_level)
        transformers_logging.set_verbosity(transformers_level)
        if bars[0]:
            diffusers_logging.enable_progress_bar()
        if bars[1]:
            transformers_logging.enable_progress_bar()


def from_hub(name: str, files: Sequence[str], needed: Sequence[str], what: str) -> Path:
    """The hub's snapshot, from this machine's cache, else by download. Raises InputError that says how to get it.

    `files`: patterns of what is fetched; `needed`: those that a complete copy in the cache has; `what`: for messages.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    def snapshot(offline: bool) -> Path:
        found = snapshot_download(
            name, allow_patterns=list(files), ignore_patterns=["*.fp16.*"], local_files_only=offline
        )
        return Path(found)

    try:
        cached: Path | None = snapshot(offline=True)
    except LocalEntryNotFoundError:
        cached = None
    if cached is not None and all(any(cached.glob(pattern)) for pattern in needed):
        return cached
    try:
        return snapshot(offline=False)
    except Exception as error:  # the hub's client raises errors of several HTTP libraries
        raise InputError(
            f"the {what} {name} is not on this machine and could not be downloaded ({type(error).__name__}); where "
            f"there is a network run: hf download {name} --local-dir FOLDER (older clients: huggingface-cli download), "
            f"copy FOLDER here and name it as the {what}"
        ) from error
