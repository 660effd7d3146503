"""A bundle in a repository of a model hub: hf://OWNER/NAME, with @REVISION behind it for a branch, tag or commit.

    README.md           the model card (reports/model_card.py)
    bundle/             a bundle, byte for byte; what `pull` fetches
    model_index.json, unet/, vae/, ...    trained weights in diffusers' layout: `train --base OWNER/NAME` takes them
    lora/, contexts.safetensors           the adapter by itself and learned prompt contexts, where they were trained

Pulling is plain HTTPS, without the hub's package: HF_ENDPOINT names another hub than huggingface.co, HF_TOKEN opens
what is not public. Pushing is the hub's own client.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import quote

from anomalysd_edge.bundle.reader import MANIFEST, read_bundle
from anomalysd_edge.core.files import write_aside
from anomalysd_edge.errors import InputError, RegistryError, missing_extra
from anomalysd_edge.fleet import registry
from anomalysd_edge.fleet.storage import PAUSES_S, Storage

SCHEME = "hf://"
CARD = "README.md"
BUNDLE = "bundle"
PLACEHOLDER = "OWNER/NAME"
"""In a card that was not pushed yet."""
_ADDRESS = re.compile(r"hf://([\w.-]+/[\w.-]+)(?:@([^\s@]+))?", re.ASCII)


def parse_address(url: str) -> tuple[str, str | None]:
    """('OWNER/NAME', revision or None) of an address. Raises InputError."""
    found = _ADDRESS.fullmatch(url.rstrip("/"))
    if found is None:
        raise InputError(f"{url} is no address on a hub; expected hf://OWNER/NAME or hf://OWNER/NAME@REVISION")
    return found[1], found[2]


def bundle_name(url: str) -> str:
    """What the bundle is called on a box unless it is named: NAME of the address."""
    return parse_address(url)[0].partition("/")[2]


class HubStorage(Storage):
    """The bundle of a repository, file by file, over HTTPS."""

    absent = (
        "check OWNER/NAME and REVISION, and that it was made with 'sd-edge hub'; where it is not public, set HF_TOKEN"
    )

    def __init__(self, url: str, pauses_s: Sequence[float] = PAUSES_S) -> None:
        """Raises InputError for an address of another form."""
        repository, revision = parse_address(url)
        endpoint = os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")
        token = os.environ.get("HF_TOKEN", "").strip()
        # As the session's headers they stay with the hub: a redirection to another host goes without them.
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        place = f"{endpoint}/{repository}/resolve/{quote(revision or 'main', safe='')}/{BUNDLE}"
        super().__init__(place, tuple(pauses_s), client_kwargs={"headers": headers})

    def part(self, name: str, start: int, length: int) -> bytes:
        """`length` bytes of a file from `start`. Raises RegistryError where the hub sends another number."""
        wanted = {"Range": f"bytes={start}-{start + length - 1}"}
        data = self.read(name, length, size=length, headers=wanted)
        if len(data) != length:
            raise RegistryError(f"{self.url}/{name} ends after {start + len(data)} bytes: damaged; push it again")
        return data


def find_on_hub(storage: HubStorage, version: str | None) -> registry.RemoteVersion:
    """The bundle that the revision holds. Raises RegistryError where it is not `version`."""
    manifest, signature = registry.signed_manifest(storage, "")
    found = registry.version_of(manifest)
    if version not in (None, found):
        raise RegistryError(f"{storage.url} holds the version {found}, not {version}; name its revision behind an @")
    return registry.RemoteVersion(found, manifest, signature, registry.PIECE_BYTES, None)


def push_folder(folder: Path, url: str, public_key: Path | None = None) -> tuple[str, str]:
    """Upload what `sd-edge hub` wrote; the bundle's version and the page's address. A new repository is private.

    The card gets the repository's name in place of PLACEHOLDER. Files of an older bundle are removed from the
    repository in the same commit, other files of it stay. Raises InputError, BundleError (damaged, or not signed as
    `public_key` demands), MissingExtra and RegistryError.
    """
    repository, revision = parse_address(url)
    if not (folder / BUNDLE / MANIFEST).is_file() or not (folder / CARD).is_file():
        raise InputError(
            f"{folder} holds no {CARD} and {BUNDLE}/{MANIFEST}; make the folder first, look at its card, then push it: "
            "sd-edge hub BUNDLE --out FOLDER"
        )
    read_bundle(folder / BUNDLE, verify=True, public_key=public_key)
    version = registry.version_of((folder / BUNDLE / MANIFEST).read_bytes())
    try:
        from huggingface_hub import HfApi
    except ModuleNotFoundError as error:
        raise missing_extra("huggingface_hub", "hub") from error
    text = (folder / CARD).read_text(encoding="utf-8")
    if PLACEHOLDER in text:
        with write_aside(folder / CARD) as aside:
            aside.write_text(text.replace(PLACEHOLDER, repository), encoding="utf-8")
    api = HfApi()
    try:
        page = api.create_repo(repository, repo_type="model", private=True, exist_ok=True)
        api.upload_folder(
            repo_id=repository,
            folder_path=folder,
            repo_type="model",
            revision=revision,
            commit_message=f"Bundle {version}",
            delete_patterns=[f"{BUNDLE}/*"],
        )
    except Exception as error:  # the hub's client raises errors of several HTTP libraries
        what = " ".join(str(error).split())[:200]
        raise RegistryError(
            f"{url} could not be written ({type(error).__name__}: {what}); check OWNER/NAME and the token (hf auth "
            "login, or HF_TOKEN with the right to write), then push again"
        ) from error
    return version, str(page)
