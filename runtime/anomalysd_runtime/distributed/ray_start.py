"""The one place where Ray is imported and started."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from anomalysd_edge.errors import BackendError, SettingsError, missing_extra

LOCAL = "local"
CONNECT_S = 10.0
STORE_BYTES = 512 << 20
"""Ray's shared memory where we start it ourselves: groups of photos are small, and its default takes 30 % of all."""


def import_ray() -> Any:
    """The module. Raises MissingExtra."""
    # A box in a factory reports to nobody.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("RAY_raylet_start_wait_time_s", "120")  # a busy machine takes longer than its 30 s
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # else its core writes to our stderr
    try:
        import ray
    except ModuleNotFoundError as error:
        raise missing_extra("ray", "ray") from error
    return ray


def _check_port(address: str) -> None:
    """Raise OSError where nobody listens: Ray itself tries again for minutes. 'auto' and names are left to Ray."""
    host, _, port = address.rpartition("//")[2].rpartition(":")
    if host and port.isdigit():
        socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_S).close()


@contextmanager
def ray_running(address: str, cpus: int) -> Iterator[Any]:
    """Ray at `address` ('local' starts one on this machine with `cpus`); ours is stopped at the end.

    Raises BackendError where no cluster answers, SettingsError where this process uses another one already.
    """
    ray = import_ray()
    if ray.is_initialized():
        raise SettingsError("this process is connected to a Ray cluster already; end that connection first")
    quiet = {"log_to_driver": False, "logging_level": logging.ERROR, "configure_logging": True}
    try:
        if address == LOCAL:
            ray.init(num_cpus=cpus, object_store_memory=STORE_BYTES, include_dashboard=False, address=LOCAL, **quiet)
        else:
            _check_port(address)
            ray.init(address=address, **quiet)
    except Exception as error:  # a start that takes too long is a bare Exception of Ray's
        where = "on this machine" if address == LOCAL else f"at {address}"
        raise BackendError(
            f"Ray {where} does not answer ({error}); start one with 'ray start --head', set RAY_AUTH_MODE=token where "
            "it asks for its token, or use --ray local"
        ) from error
    try:
        yield ray
    finally:
        ray.shutdown()
