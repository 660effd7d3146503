"""The demo data: seeded to the byte, masks exact, laid out as MVTec-AD."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from anomalysd_edge.demo.dataset import DEMO_DEFECTS, LOGICAL_DEFECTS, VISIBLE, render_demo, render_part, tidy
from anomalysd_edge.errors import InputError

SIDE = 64
PAIRS = [(name, defect) for name, defects in DEMO_DEFECTS.items() for defect in defects]


def contents(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


def render(root: Path, seed: int) -> dict[str, bytes]:
    render_demo(root, seed, train_good=1, test_good=1, test_bad=2, side=SIDE)
    return contents(root)


def test_same_seed_same_bytes_other_seed_other_photos(tmp_path: Path) -> None:
    first, again, other = render(tmp_path / "a", 3), render(tmp_path / "b", 3), render(tmp_path / "c", 4)
    assert first == again
    assert first.keys() == other.keys()
    photos = [name for name in first if "ground_truth" not in name]
    assert all(first[name] != other[name] for name in photos)
    assert len({first[name] for name in photos}) == len(photos)


def test_layout_is_mvtec_and_progress_counts_to_the_end(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    root = tmp_path / "demo"
    root.mkdir()
    render_demo(root, 0, 2, 1, 7, SIDE, lambda done, total: seen.append((done, total)))
    assert seen == [(n, 50) for n in range(1, 51)]
    assert sorted(path.name for path in root.iterdir()) == sorted(DEMO_DEFECTS)
    for name, defects in DEMO_DEFECTS.items():
        assert sorted(path.name for path in (root / name).iterdir()) == ["ground_truth", "test", "train"]
        assert len(list((root / name / "train/good").glob("*.png"))) == 2
        assert len(list((root / name / "test/good").glob("*.png"))) == 1
        bad = [path for path in (root / name / "test").glob("*/*.png") if path.parent.name != "good"]
        assert len(bad) == 7
        assert {path.parent.name for path in bad} == set(defects)
        for path in bad:
            with Image.open(root / name / "ground_truth" / path.parent.name / f"{path.stem}_mask.png") as mask:
                assert (mask.mode, mask.size, mask.info) == ("L", (SIDE, SIDE), {})
                assert set(np.unique(np.asarray(mask))) == {0, 255}
            with Image.open(path) as photo:
                assert (photo.mode, photo.size, photo.info) == ("RGB", (SIDE, SIDE), {})


@pytest.mark.parametrize(("name", "defect"), PAIRS)
def test_mask_is_what_differs(name: str, defect: str) -> None:
    part = render_part(name, (11, 2), SIDE, defect)
    assert part.mask.shape == (SIDE, SIDE)
    assert 0 < part.mask.mean() < 0.5
    assert np.array_equal(part.canvas[~part.mask], part.clean[~part.mask])
    with_defect, without = part.photo(), part.photo(with_defect=False)
    assert np.array_equal(with_defect[~part.mask], without[~part.mask])
    visible = np.abs(part.canvas - part.clean).max(axis=2) > VISIBLE
    # A logical mask is grown by a pixel; around any other, every pixel is visible or closes a gap of one.
    assert visible[part.mask].mean() > (0.3 if defect in LOGICAL_DEFECTS else 0.75)
    assert (with_defect != without).any()


def test_defects_are_many_and_some_are_logical() -> None:
    kinds = {defect for defects in DEMO_DEFECTS.values() for defect in defects}
    assert len(kinds - LOGICAL_DEFECTS) >= 6
    assert kinds >= LOGICAL_DEFECTS
    assert len(DEMO_DEFECTS) == 5


def test_a_good_part_does_not_depend_on_the_defect_it_might_have() -> None:
    good = render_part("demo_board", (5,), SIDE)
    bad = render_part("demo_board", (5,), SIDE, "part_missing")
    assert np.array_equal(good.clean, bad.clean)
    assert not good.mask.any()
    assert np.array_equal(good.photo(), bad.photo(with_defect=False))


def test_tidy_drops_specks_and_closes_gaps() -> None:
    mask = np.zeros((12, 12), bool)
    mask[2:7, 2:7] = True
    mask[4, 4] = False
    mask[10, 10] = True
    wanted = np.zeros((12, 12), bool)
    wanted[2:7, 2:7] = True
    assert np.array_equal(tidy(mask), wanted)


def test_refuses_a_full_folder_and_leaves_it_alone(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("keep")
    with pytest.raises(InputError, match="not an empty folder"):
        render_demo(tmp_path, side=SIDE)
    assert contents(tmp_path) == {"mine.txt": b"keep"}


def test_ctrl_c_leaves_nothing(tmp_path: Path) -> None:
    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        render_demo(tmp_path / "demo", side=SIDE, progress=stop)
    assert list(tmp_path.iterdir()) == []


def test_bad_arguments(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="seed is -1"):
        render_demo(tmp_path / "demo", seed=-1)
    with pytest.raises(InputError, match="at least 32"):
        render_demo(tmp_path / "demo", side=16)
    with pytest.raises(InputError, match="demo_spoon"):
        render_part("demo_spoon", (0,), SIDE)
    with pytest.raises(InputError, match="no defect called 'crack'"):
        render_part("demo_metal", (0,), SIDE, "crack")
    assert list(tmp_path.iterdir()) == []
