"""HTTP client of running boxes: their state, and reloading a bundle that was pulled."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from anomalysd_edge.errors import BackendError, InputError, missing_extra

MOST_BYTES = 16 << 20


@dataclass(frozen=True)
class BoxState:
    """State of one box."""

    url: str
    """Its address."""
    status: str
    """ok, degraded, starting, stopping; 'unreachable' or 'refused' where it does not answer."""
    reasons: tuple[str, ...] = ()
    """Why it is not ok."""
    ready: bool = False
    """Whether it takes photos."""
    waiting: int = 0
    """Photos in its queue."""
    restarts: int = 0
    """Workers that had to be started again."""
    verdicts: dict[str, int] = field(default_factory=dict)
    """Verdicts since its start, by good, anomalous, uncertain, unknown."""
    refused: int = 0
    """Photos that got no verdict."""
    mean_s: float | None = None
    """Mean seconds from arrival to verdict, over all interfaces; None before the first."""
    bundles: dict[str, str | None] = field(default_factory=dict)
    """Name -> version that is open; None = not open."""
    photo_ms: dict[str, float] = field(default_factory=dict)
    """Bundle -> running mean of a photo's time in the worker."""

    @property
    def fine(self) -> bool:
        """Nothing to look at."""
        return self.status == "ok"


def read_boxes(file: Path) -> list[str]:
    """Addresses from a text file, one a line; empty lines and lines with # are left out. Raises InputError."""
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{file} cannot be read ({error}); expected a line with an address for each box") from error
    return [line.strip() for line in lines if line.strip() and not line.startswith("#")]


def fleet_state(urls: Sequence[str], token: str | None, timeout_s: float = 5.0) -> list[BoxState]:
    """The state of the boxes, in their order, requested in parallel: one that does not answer delays none."""
    for url in urls:
        if not url.startswith(("http://", "https://")):
            raise InputError(f"{url!r} is no address of a box; expected for instance http://10.0.0.7:8080")
    if not urls:
        raise InputError("no box was named; give addresses, or --boxes FILE with one a line")
    with ThreadPoolExecutor(min(32, len(urls))) as pool:
        return list(pool.map(lambda url: box_state(url.rstrip("/"), token, timeout_s), urls))


def box_state(url: str, token: str | None, timeout_s: float) -> BoxState:
    """The state of one box: /health, then /bundles and /metrics, which want a token where the box has one."""
    try:
        health = json.loads(_get(url, "/health", token, timeout_s))
    except (OSError, ValueError) as error:
        return BoxState(url, "unreachable", (_reason(error),))
    known = BoxState(
        url,
        str(health.get("status")),
        tuple(map(str, health.get("reasons", ()))),
        bool(health.get("ready")),
        int(health.get("waiting", 0)),
        int(health.get("worker_restarts", 0)),
    )
    try:
        bundles = json.loads(_get(url, "/bundles", token, timeout_s))["bundles"]
        figures = read_metrics(_get(url, "/metrics", token, timeout_s).decode())
    except (OSError, ValueError, KeyError) as error:
        return BoxState(url, "refused" if known.fine else known.status, (*known.reasons, _reason(error)), known.ready)
    return replace(known, bundles={entry["name"]: entry.get("bundle_id") for entry in bundles}, **figures)


def read_metrics(text: str) -> dict[str, Any]:
    """What BoxState takes from a box's /metrics. Raises MissingExtra, and ValueError for text that is none."""
    try:
        from prometheus_client.parser import text_string_to_metric_families
    except ModuleNotFoundError as error:
        raise missing_extra("prometheus-client", "fleet") from error
    verdicts: dict[str, int] = {}
    photo_ms: dict[str, float] = {}
    refused, seconds, count = 0, 0.0, 0.0
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if sample.name == "sd_edge_verdicts_total":
                kind = sample.labels["verdict"]
                verdicts[kind] = verdicts.get(kind, 0) + int(sample.value)
            elif sample.name == "sd_edge_requests_total" and sample.labels["status"] != "200":
                refused += int(sample.value)
            elif sample.name == "sd_edge_request_seconds_sum":
                seconds += sample.value
            elif sample.name == "sd_edge_request_seconds_count":
                count += sample.value
            elif sample.name == "sd_edge_photo_milliseconds":
                photo_ms[sample.labels["bundle"]] = sample.value
    return {
        "verdicts": verdicts, "refused": refused, "mean_s": seconds / count if count else None, "photo_ms": photo_ms,
    }  # fmt: skip


def reload(url: str, name: str, token: str | None, timeout_s: float = 600.0) -> str | None:
    """Make a box open what BOX/NAME is now; the version that is open then. Raises BackendError with the box's sentence.

    None where no box answers at the address: there is nothing to reload.
    """
    try:
        listing = json.loads(_get(url.rstrip("/"), f"/bundles/{name}/reload", token, timeout_s, b""))
    except urllib.error.HTTPError as error:
        raise BackendError(f"{url} does not open it: {_reason(error)}") from error
    except urllib.error.URLError as error:
        if isinstance(error.reason, ConnectionRefusedError):
            return None
        raise BackendError(f"{url} does not answer ({error.reason}); look at the box") from error
    except (OSError, ValueError) as error:
        raise BackendError(f"{url} does not answer as a box does ({error}); look at it") from error
    return next((entry["bundle_id"] for entry in listing["bundles"] if entry["name"] == name), None)


def _get(url: str, path: str, token: str | None, timeout_s: float, body: bytes | None = None) -> bytes:
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    request = urllib.request.Request(f"{url}{path}", body, headers)
    with urllib.request.urlopen(request, timeout=timeout_s) as response:
        data: bytes = response.read(MOST_BYTES)
    return data


def _reason(error: Exception) -> str:
    """A sentence; a box's own where it sent one."""
    if isinstance(error, urllib.error.HTTPError):
        with error:
            try:
                return f"{error.code}: {json.loads(error.read(MOST_BYTES))['error']}"
            except (ValueError, KeyError, TypeError):
                return f"HTTP status {error.code}"
    return str(getattr(error, "reason", error))
