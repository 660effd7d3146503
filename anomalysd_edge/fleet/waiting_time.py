"""How long photos wait at a box: the classical queue with one server and a fixed service time, photos at random times.

Kleinrock, "Queueing Systems" vol. 1 (1975), for the M/D/1 queue; the tail is Cramér and Lundberg's, exact far out:
P(W > x) ~ C exp(-eta x) with eta the positive root of lambda (exp(eta t) - 1) = eta and
C = (1 - rho) / (rho exp(eta t) - 1), where t is the service time, lambda the arrivals a second and rho = lambda t.
"""

from __future__ import annotations

import math

from anomalysd_edge.errors import SettingsError

STEADY_USE = 0.95
"""Largest use of a box whose photos come at even times: what is left absorbs jitter."""


def waiting_quantile_s(service_s: float, use: float, share: float = 0.99) -> float:
    """Seconds that `share` of the photos do not exceed before their turn, at use rho in [0,1). Raises SettingsError."""
    if not 0 <= use < 1 or not 0 < share < 1 or service_s <= 0:
        raise SettingsError(f"use {use:g}, share {share:g} and service {service_s:g} s; expected [0,1), (0,1) and > 0")
    if use == 0:
        return 0.0
    decay = _decay(use)
    constant = (1 - use) / (use * math.exp(decay) - 1)
    return max(0.0, math.log(constant / (1 - share)) / decay) * service_s


def latency_quantile_s(photo_s: float, group: int, use: float, steady: bool, share: float = 0.99) -> float:
    """Seconds from arrival to verdict that `share` of the photos do not exceed, where up to `group` are judged at once.

    A photo is told its verdict with the last of its group: on average those that came while it waited, at most
    group - 1, hold it up. `steady`: photos come at even times and wait for nobody.
    """
    if steady:
        return photo_s if use <= STEADY_USE else math.inf
    return waiting_quantile_s(photo_s, use, share) + photo_s * (1 + (group - 1) * use)


def largest_use(photo_s: float, group: int, deadline_s: float, steady: bool, share: float = 0.99) -> float:
    """The share of its time that a box may work so that the deadline holds; 0 where even an idle box is too slow."""
    if latency_quantile_s(photo_s, group, 0.0, steady, share) > deadline_s:
        return 0.0
    low, high = 0.0, STEADY_USE
    if latency_quantile_s(photo_s, group, high, steady, share) <= deadline_s:
        return high
    for _ in range(60):
        middle = (low + high) / 2
        if latency_quantile_s(photo_s, group, middle, steady, share) <= deadline_s:
            low = middle
        else:
            high = middle
    return low


def _decay(use: float) -> float:
    """eta t: the positive root of rho (exp(y) - 1) = y."""
    low, high = 1e-12, 1.0
    while use * math.expm1(high) < high:
        high *= 2
    for _ in range(200):
        middle = (low + high) / 2
        if use * math.expm1(middle) < middle:
            low = middle
        else:
            high = middle
    return high
