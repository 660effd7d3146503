"""What is checked of every request first: host, origin, token, size, time and rate; and the headers of every answer.

Plain ASGI, so that a request which is refused costs neither a body nor a form parser.
"""

from __future__ import annotations

import asyncio
import hmac
import json
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any
from urllib.parse import urlsplit

from anomalysd_runtime.server.settings import NO_ROLE, ROLES, SecuritySettings

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

OPEN_PATHS = ("/", "/favicon.ico", "/health", "/v2/health/live", "/v2/health/ready")
"""Answered without a token: the page (it asks for one) and what a supervisor polls. Neither tells of verdicts."""
HEADERS = (
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"permissions-policy", b"geolocation=(), microphone=()"),
    (
        b"content-security-policy",
        b"default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; connect-src 'self'; "
        b"base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    ),
)
_WHO_MAY = {"teach": "a teacher or an admin", "manage": "an admin, or a token without a role,"}
KNOWN_CLIENTS = 1024
DRAIN_S, DRAIN_BYTES = 1.0, 16 << 20


class RequestRejected(Exception):
    """A request that is answered by the middleware itself."""

    def __init__(self, status: int, sentence: str, retry_after_s: float | None = None) -> None:
        super().__init__(sentence)
        self.status, self.retry_after_s = status, retry_after_s


class RateLimit:
    """A token bucket per client; in memory for the last KNOWN_CLIENTS of them."""

    def __init__(self, per_s: float, burst: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._per_s, self._burst, self._clock = per_s, burst, clock
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def wait_s(self, client: str, cost: int = 1) -> float:
        """0 and the permits are taken; or the seconds after which they would be there."""
        if self._per_s <= 0:
            return 0.0
        now = self._clock()
        level, seen = self._buckets.pop(client, (float(self._burst), now))
        level = min(float(self._burst), level + (now - seen) * self._per_s)
        needed = min(cost, self._burst)
        wait = 0.0 if level >= needed else (needed - level) / self._per_s
        self._buckets[client] = (level - needed if wait == 0 else level, now)
        while len(self._buckets) > KNOWN_CLIENTS:
            self._buckets.popitem(last=False)
        return wait


class _Body:
    """A request's body as it comes in: its bytes and its time are counted. Refused is raised where the app reads it."""

    def __init__(self, receive: Receive, settings: SecuritySettings) -> None:
        self._receive, self._settings = receive, settings
        self._left = settings.max_body_bytes
        self._until = time.monotonic() + settings.body_timeout_s
        self._whole = False

    async def receive(self) -> Message:
        """The next part; after the last one, whatever the server says (that the client went)."""
        if self._whole:
            return await self._receive()
        try:
            message = await asyncio.wait_for(self._receive(), max(0.001, self._until - time.monotonic()))
        except (asyncio.TimeoutError, TimeoutError):
            self._whole = True
            raise RequestRejected(
                408, f"the body did not arrive within {self._settings.body_timeout_s:g} s; send it faster"
            ) from None
        self._note(message)
        if self._left < 0:
            raise _too_large(self._settings)
        return message

    async def drain(self) -> None:
        """Read on for a moment before an answer that came first: closing on unread bytes would tear the answer down."""
        until = time.monotonic() + DRAIN_S
        while not self._whole and self._left > -DRAIN_BYTES:
            try:
                self._note(await asyncio.wait_for(self._receive(), max(0.001, until - time.monotonic())))
            except (asyncio.TimeoutError, TimeoutError):
                return

    def _note(self, message: Message) -> None:
        self._left -= len(message.get("body", b""))
        self._whole = message["type"] != "http.request" or not message.get("more_body", False)


class SecurityMiddleware:
    """The outermost ASGI application: it admits or rejects requests and adds the security headers."""

    def __init__(self, app: App, settings: SecuritySettings, own_hosts: tuple[str, ...]) -> None:
        self._app, self._settings = app, settings
        self._hosts = {host.lower() for host in (*own_hosts, *settings.hosts)}
        self._tokens = {name: secret.encode() for name, secret in settings.tokens.items()}
        self._rate = RateLimit(settings.rate_per_s, settings.rate_burst)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request. HEAD is answered as GET is, without the body: monitors and load balancers ask so."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        begun, head_only = False, scope["method"] == "HEAD"
        if head_only:
            scope = {**scope, "method": "GET"}
        body = _Body(receive, self._settings)

        async def answer(message: Message) -> None:
            nonlocal begun
            if message["type"] == "http.response.start":
                begun = True
                await body.drain()
                message = {**message, "headers": [*message.get("headers", []), *self._extra(scope)]}
            if head_only and message["type"] == "http.response.body":
                message = {**message, "body": b""}
            await send(message)

        try:
            self._admit(scope)
            await self._app(scope, body.receive, answer)
        except RequestRejected as error:
            if begun:
                raise
            await _reject(answer, error)

    def _admit(self, scope: Scope) -> None:
        """Host, origin, token, announced length and rate. Raises Refused; puts the client's name into the scope."""
        headers = {key.lower(): value for key, value in scope["headers"]}
        host = _host_of(headers.get(b"host", b"").decode("latin-1"))
        if self._hosts and host not in self._hosts:
            raise RequestRejected(
                421, f"this box does not answer under the host name {host[:80]!r}; allow it with --allow-host"
            )
        if scope["method"] not in ("GET", "HEAD") and _cross_site(headers, host):
            raise RequestRejected(403, "a page of another site asked; only this box's own page and programs may")
        principal = self._principal(headers.get(b"authorization", b""))
        path = scope["path"]
        if self._tokens and principal is None and not (path in OPEN_PATHS or path.startswith("/static/")):
            raise RequestRejected(401, "a token is needed: send the header 'Authorization: Bearer TOKEN'")
        needed = _permission(scope["method"], path)
        if self._tokens and principal is not None and needed is not None and needed not in self._may(principal):
            role = self._settings.roles.get(principal, "none")
            raise RequestRejected(
                403, f"the token {principal!r} (role {role}) may not {needed}; {_WHO_MAY[needed]} may"
            )
        label = headers.get(b"x-client", b"").decode("latin-1")[:64]
        address = (scope.get("client") or ("local", 0))[0]
        who = principal or address
        scope["state"] = {
            **scope.get("state", {}),
            "client": f"{who}/{label}" if label else who,
            "charge": lambda photos: self._charge(who, photos),
        }
        length = headers.get(b"content-length", b"0")
        if length.isdigit() and int(length) > self._settings.max_body_bytes:
            raise _too_large(self._settings)
        if scope["method"] == "POST" and _is_inspection(path):
            self._charge(who, 1)

    def _principal(self, authorization: bytes) -> str | None:
        """The name of the token that was sent. Every token is compared, each in constant time."""
        scheme, _, sent = authorization.partition(b" ")
        found = None
        for name, secret in self._tokens.items():
            if hmac.compare_digest(sent.strip(), secret) and scheme.lower() == b"bearer":
                found = name
        return found

    def _may(self, principal: str) -> frozenset[str]:
        """What a token may do beyond inspecting and correcting."""
        role = self._settings.roles.get(principal)
        return NO_ROLE if role is None else ROLES[role]

    def _charge(self, who: str, photos: int) -> None:
        """Count photos against the client's rate; a request with several is charged once their number is known."""
        wait = self._rate.wait_s(who, photos) if photos > 0 else 0.0
        if wait > 0:
            raise RequestRejected(
                429, f"more than {self._settings.rate_per_s:g} inspections a second; come slower", wait
            )

    def _extra(self, scope: Scope) -> list[tuple[bytes, bytes]]:
        extra = list(HEADERS)
        if scope.get("scheme") == "https":
            extra.append((b"strict-transport-security", b"max-age=31536000"))
        if not scope["path"].startswith("/static/"):
            extra.append((b"cache-control", b"no-store"))
        return extra


def _too_large(settings: SecuritySettings) -> RequestRejected:
    return RequestRejected(413, f"the body is longer than {settings.max_body_bytes >> 20} MiB; send a smaller photo")


def own_hosts(host: str) -> tuple[str, ...]:
    """Names under which a box that binds `host` is asked for. A wildcard address is asked for under any: ()."""
    if host in ("0.0.0.0", "::"):
        return ()
    return ("127.0.0.1", "localhost", "::1", host)


def _host_of(header: str) -> str:
    try:
        return (urlsplit(f"//{header}").hostname or "").lower()
    except ValueError:
        return ""


def _cross_site(headers: dict[bytes, bytes], host: str) -> bool:
    """Whether a browser says that another site's page sends this. Programs send neither header."""
    if headers.get(b"sec-fetch-site", b"none") not in (b"none", b"same-origin"):
        return True
    origin = headers.get(b"origin")
    return origin is not None and _host_of(origin.decode("latin-1").partition("://")[2]) != host


def _is_inspection(path: str) -> bool:
    return path.startswith("/inspect") or path.endswith("/infer")


def _permission(method: str, path: str) -> str | None:
    """What a token needs to be allowed for a request, beyond inspecting and correcting."""
    if method != "POST":
        return None
    parts = path.strip("/").split("/")
    if parts == ["classes"] or (parts[0], parts[-1]) in (("bundles", "restore"), ("classes", "accept")):
        return "teach"
    repository = parts[0] == "bundles" or parts[:2] == ["v2", "repository"]
    return "manage" if repository and parts[-1] in ("load", "reload", "unload") else None


async def _reject(send: Send, error: RequestRejected) -> None:
    body = json.dumps({"error": str(error)}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    if error.retry_after_s is not None:
        headers.append((b"retry-after", str(max(1, round(error.retry_after_s))).encode()))
    if error.status in (408, 413):
        headers.append((b"connection", b"close"))  # the rest of the body is not read
    if error.status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    await send({"type": "http.response.start", "status": error.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
