"""Verdicts to a URL: signed, retried, and remembered over a restart in the record's outbox."""

from __future__ import annotations

import hashlib
import hmac
import json
import logging
import random
import sqlite3
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from http.client import HTTPException
from typing import Any

from anomalysd_edge import __version__
from anomalysd_runtime.server.records.tables import verdict_of
from anomalysd_runtime.server.records.verdict_store import StoreError, VerdictStore
from anomalysd_runtime.server.settings import WebhookSettings, is_loopback
from anomalysd_runtime.server.verdicts import Verdict

log = logging.getLogger("sd-edge.webhook")
LONGEST_S = 600.0
"""Longest pause between two tries."""
GIVEN_UP = 9e18
"""`next_at` of a call that is tried no more."""


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A redirect would carry a verdict, signed, to a place that nobody configured."""

    def redirect_request(self, *_: Any, **__: Any) -> None:
        return None


class Webhook:
    """Delivers the outbox in a thread of its own."""

    def __init__(self, store: VerdictStore, settings: WebhookSettings) -> None:
        self._store, self._settings = store, settings
        self._proxy = proxy_of(settings.url)
        handlers: list[Any] = [_NoRedirect]
        handlers += [urllib.request.ProxyHandler({})] if self._proxy is None else []
        self._open = urllib.request.build_opener(*handlers)
        if self._proxy is not None:
            log.info("webhook calls go through the proxy %s of the environment", self._proxy)
        self._end = threading.Event()
        self._news = threading.Event()
        self._thread = threading.Thread(target=self._run, name="sd-edge-webhook", daemon=True)

    def start(self) -> None:
        """Begin, with what an earlier process left."""
        self._thread.start()

    def stop(self) -> None:
        """End after the call that runs; the rest stays in the outbox."""
        self._end.set()
        self._news.set()
        self._thread.join(self._settings.timeout_s + 5)

    def wants(self, verdict: Verdict) -> bool:
        """Whether this verdict goes into the outbox."""
        return verdict.verdict in self._settings.verdicts

    def on_verdict(self, verdict: Verdict) -> None:
        """A verdict was recorded: deliver at once."""
        if self.wants(verdict):
            self._news.set()

    def waiting(self) -> int:
        """Calls that are not delivered and not given up."""
        with self._store.connection() as db:
            return int(db.execute("SELECT count(*) FROM outbox WHERE next_at < ?", (GIVEN_UP,)).fetchone()[0])

    def _run(self) -> None:
        while not self._end.is_set():
            self._news.clear()
            try:
                pause = self._deliver_due()
            except (sqlite3.Error, StoreError) as error:
                log.warning("the outbox cannot be read: %s", error)
                pause = 5.0
            self._news.wait(pause)

    def _deliver_due(self) -> float:
        """Try every call that is due; seconds until the next one is."""
        now = time.time()
        # A pause that lies further away than the longest one was written before the clock was set back: it is due.
        due = "next_at <= ? OR (next_at > ? AND next_at < ?)"
        with self._store.connection() as db:
            rows = db.execute(
                f"SELECT * FROM outbox JOIN verdicts ON id = verdict_id WHERE {due} ORDER BY id LIMIT 64",
                (now, now + 2 * LONGEST_S, GIVEN_UP),
            ).fetchall()
        for row in rows:
            if self._end.is_set():
                return 0.0
            problem = self._call(verdict_of(row))
            number, attempts = row["verdict_id"], row["attempts"] + 1
            if problem is None:
                self._store.write("DELETE FROM outbox WHERE verdict_id = ?", number).result()
            else:
                self._later(number, attempts, problem)
        return 0.0 if len(rows) == 64 else 1.0

    def _later(self, number: int, attempts: int, problem: str) -> None:
        given_up = attempts >= self._settings.attempts
        pause = min(LONGEST_S, 2.0 ** (attempts - 1)) * random.uniform(0.75, 1.0)
        at = GIVEN_UP if given_up else time.time() + pause
        outcome = "given up" if given_up else f"again in {pause:.0f} s"
        log.warning("webhook call %d failed (%s): %s", attempts, problem, outcome)
        self._store.write(
            "UPDATE outbox SET attempts = ?, next_at = ? WHERE verdict_id = ?", attempts, at, number
        ).result()

    def _call(self, verdict: Verdict) -> str | None:
        """None where it was taken (2xx), or what went wrong."""
        body = json.dumps(verdict.to_json(), allow_nan=False).encode()
        headers = {
            "Content-Type": "application/json",
            "User-Agent": f"anomalysd-edge/{__version__}",
            "X-SD-Edge-Delivery": verdict.uid,
        }
        if self._settings.secret:
            stamp = str(int(time.time()))
            headers |= {
                "X-SD-Edge-Timestamp": stamp,
                "X-SD-Edge-Signature": signature(self._settings.secret, stamp, body),
            }
        request = urllib.request.Request(self._settings.url, body, headers, method="POST")
        try:
            with self._open.open(request, timeout=self._settings.timeout_s) as answer:
                return None if 200 <= answer.status < 300 else f"status {answer.status}"
        except urllib.error.HTTPError as error:
            with error:
                return f"status {error.code}"
        except (OSError, HTTPException) as error:
            through = f" (through the proxy {self._proxy} of the environment)" if self._proxy else ""
            return f"{type(error).__name__}: {error}{through}"


def proxy_of(url: str) -> str | None:
    """The proxy that the environment (http_proxy, https_proxy, no_proxy) names for `url`, without its password.

    None for a host that no_proxy exempts, and always for this machine itself: no proxy can reach our loopback.
    """
    parts = urllib.parse.urlsplit(url)
    host = parts.hostname or ""
    if is_loopback(host) or urllib.request.proxy_bypass(host):
        return None
    proxy = urllib.request.getproxies().get(parts.scheme)
    return None if proxy is None else proxy.rpartition("@")[2]


def signature(secret: str, stamp: str, body: bytes) -> str:
    """'sha256=' and the HMAC of 'STAMP.BODY': the receiver computes the same and compares in constant time."""
    digest = hmac.new(secret.encode(), stamp.encode() + b"." + body, hashlib.sha256)
    return f"sha256={digest.hexdigest()}"
