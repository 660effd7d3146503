"""numpy's work in threads: order, errors, and results that do not depend on how many there are."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
import threading
from collections.abc import Iterator

import numpy as np
import pytest

from anomalysd_edge.core.threads import cores, spread, use_threads
from anomalysd_edge.method.patches.memory_bank import Bank, own_distances, unit
from anomalysd_edge.vision.images import resize_maps


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    yield
    use_threads(None)


def test_the_order_is_that_of_the_items() -> None:
    use_threads(3)
    assert spread(lambda n: n * n, range(50)) == [n * n for n in range(50)]


def test_threads_are_as_many_as_were_asked_for() -> None:
    meeting = threading.Barrier(2, timeout=20)
    use_threads(2)
    # Two items meet only where two threads have them at once.
    assert len(spread(lambda _: meeting.wait(), range(2))) == 2
    use_threads(1)
    assert set(spread(lambda _: threading.get_ident(), range(8))) == {threading.get_ident()}


def test_an_error_comes_out() -> None:
    use_threads(2)
    with pytest.raises(ZeroDivisionError):
        spread(lambda n: 1 // n, [2, 1, 0])


def _squares() -> list[int]:
    return spread(lambda n: n * n, range(4))


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="processes are not forked here")
@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork.*:DeprecationWarning")
def test_a_forked_process_has_threads_of_its_own() -> None:
    use_threads(2)
    assert _squares() == [0, 1, 4, 9]
    with multiprocessing.get_context("fork").Pool(1) as pool:
        assert pool.apply_async(_squares).get(timeout=20) == [0, 1, 4, 9]


def test_results_do_not_depend_on_threads() -> None:
    rng = np.random.default_rng(0)
    field = unit(rng.standard_normal((40, 32, 32)).astype(np.float32), axis=0)
    bank = Bank(unit(rng.standard_normal((1500, 40)).astype(np.float32), axis=1))
    planes = rng.standard_normal((5, 3, 16, 16)).astype(np.float32)
    found = []
    for count in (1, 2, 5):
        use_threads(count)
        found.append([bank.distance(field), *own_distances(field, (0.1, 0.0125), 256), resize_maps(planes, (32, 32))])
    for other in found[1:]:
        for one, same in zip(found[0], other, strict=True):
            np.testing.assert_array_equal(one, same)
    flat = field.reshape(40, -1)
    np.testing.assert_allclose(found[0][0].ravel(), 1 - (bank.vectors @ flat).max(axis=0), atol=1e-6)


def test_cores_are_at_least_one() -> None:
    assert cores() >= 1


@pytest.mark.parametrize(
    ("set_before", "wanted"),
    [
        ({}, ["1", "3000"]),
        ({"OPENBLAS_NUM_THREADS": "2", "GOMP_SPINCOUNT": "7"}, ["2", "7"]),
        ({"OMP_WAIT_POLICY": "active"}, ["1", "None"]),
    ],
)
def test_how_libraries_threads_wait_is_set_unless_somebody_did(set_before: dict[str, str], wanted: list[str]) -> None:
    ours = ("OPENBLAS_NUM_THREADS", "GOMP_SPINCOUNT", "OMP_WAIT_POLICY")
    clean = {name: value for name, value in os.environ.items() if name not in ours}
    code = "import os, anomalysd_edge; print(*(os.environ.get(n) for n in ('OPENBLAS_NUM_THREADS', 'GOMP_SPINCOUNT')))"
    done = subprocess.run(
        [sys.executable, "-c", code], env={**clean, **set_before}, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == wanted


@pytest.mark.parametrize(("set_before", "wanted"), [({}, {1}), ({"OPENBLAS_NUM_THREADS": "2"}, {2})])
def test_who_imports_numpy_first_gets_one_blas_thread_as_well(set_before: dict[str, str], wanted: set[int]) -> None:
    clean = {name: value for name, value in os.environ.items() if name != "OPENBLAS_NUM_THREADS"}
    code = (
        "import numpy; from anomalysd_edge.core.threads import use_threads; use_threads(None);"
        "from threadpoolctl import threadpool_info;"
        "print(*(pool['num_threads'] for pool in threadpool_info() if pool['user_api'] == 'blas'))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env={**clean, **set_before}, capture_output=True, text=True, check=True
    )
    # OpenBLAS takes no more threads than there are cores.
    assert {int(count) for count in done.stdout.split()} == {min(count, cores()) for count in wanted}
