"""The picture of a partition."""

import struct
import sys
from pathlib import Path

import matplotlib
import numpy as np
import pytest

from spatl.errors import SpatlError
from spatl.partition_plot import PartitionCounts, draw_partition


def counts(num_clients: int, num_classes: int) -> PartitionCounts:
    numbers = np.arange(num_clients * num_classes).reshape(num_clients, num_classes) % 7
    splits = np.stack([numbers.sum(axis=1), np.ones(num_clients, int), np.ones(num_clients, int)], axis=1)
    return PartitionCounts(
        "a $partition", [f"a class with a long name {i}" for i in range(num_classes)], numbers, splits
    )


def size(path: Path) -> tuple[int, int]:
    content = path.read_bytes()
    assert content[:8] == b"\x89PNG\r\n\x1a\n"
    width, height = struct.unpack(">II", content[16:24])
    return width, height


@pytest.mark.parametrize(
    ("num_clients", "num_classes", "height"), [(1, 2, 580), (10, 10, 700), (30, 10, 700), (100, 100, 1240)]
)
def test_it_is_as_wide_for_all_and_higher_for_more_classes(
    num_clients: int, num_classes: int, height: int, tmp_path: Path
) -> None:
    draw_partition(counts(num_clients, num_classes), tmp_path / "a.png")
    assert size(tmp_path / "a.png") == (1400, height)


def test_a_partition_without_any_example_is_drawn_too(tmp_path: Path) -> None:
    nothing = PartitionCounts("nothing", ["a", "b"], np.zeros((3, 2), int), np.zeros((3, 3), int))
    draw_partition(nothing, tmp_path / "a.png")


def test_the_settings_of_matplotlib_stay_as_they_are(tmp_path: Path) -> None:
    before = dict(matplotlib.rcParams)
    draw_partition(counts(3, 3), tmp_path / "a.png")
    assert dict(matplotlib.rcParams) == before


def test_a_file_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(SpatlError, match=r"cannot write the picture .*a\.png: No such file or directory"):
        draw_partition(counts(3, 3), tmp_path / "nowhere" / "a.png")


def test_without_matplotlib_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(SpatlError, match=r"drawing needs matplotlib.*pip install"):
        draw_partition(counts(3, 3), tmp_path / "a.png")
