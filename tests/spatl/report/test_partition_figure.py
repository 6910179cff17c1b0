"""The picture of a partition."""

import struct
import sys
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from matplotlib.figure import Figure

from spatl.errors import SpatlError
from spatl.report.partition_figure import PartitionCounts, draw_partition


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


@pytest.mark.slow
@pytest.mark.parametrize(
    ("num_clients", "num_classes", "height"), [(1, 2, 580), (10, 10, 700), (30, 10, 700), (100, 100, 1240)]
)
def test_it_is_as_wide_for_all_and_higher_for_more_classes(
    num_clients: int, num_classes: int, height: int, tmp_path: Path
) -> None:
    draw_partition(counts(num_clients, num_classes), tmp_path / "a.png")
    assert size(tmp_path / "a.png") == (1400, height)


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """The figures that would have been saved."""
    figures: list[Figure] = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, *arguments, **keywords: figures.append(figure))
    return figures


def test_it_shows_the_counts_of_each_class_and_the_sizes_of_each_split(drawn: list[Figure], tmp_path: Path) -> None:
    """Two clients, three classes: client 0 has 4, 0 and 9 examples of them, split into 8, 2 and 3."""
    partition = PartitionCounts(
        "two by three", ["cat", "dog", "eel"], np.array([[4, 0, 9], [1, 2, 3]]), np.array([[8, 2, 3], [4, 1, 1]])
    )
    draw_partition(partition, tmp_path / "a.png")
    sizes, classes = drawn[0].axes[:2]
    shown = classes.collections[0].get_array()
    assert shown.filled(-1).tolist() == [[4, 1], [-1, 2], [9, 3]]  # a row per class; what nobody has is left white
    assert {text.get_position(): text.get_text() for text in classes.texts} == {
        (0, 0): "4", (1, 0): "1", (0, 1): "", (1, 1): "2", (0, 2): "9", (1, 2): "3",
    }  # fmt: skip
    assert [label.get_text() for label in classes.get_yticklabels()] == ["cat", "dog", "eel"]
    bars = {each.get_label(): [(bar.get_y(), bar.get_height()) for bar in each] for each in sizes.containers}
    assert bars == {"train": [(0, 8), (0, 4)], "validation": [(8, 2), (4, 1)], "test": [(10, 3), (5, 1)]}
    assert drawn[0].get_suptitle() == "two by three"


@pytest.mark.slow
def test_names_that_the_font_cannot_write_are_nobodys_warning(tmp_path: Path) -> None:
    partition = PartitionCounts("names", ["\u732b", "$\\frac{$"], np.ones((2, 2), int), np.ones((2, 3), int))
    draw_partition(partition, tmp_path / "a.png")
    assert (tmp_path / "a.png").exists()


@pytest.mark.slow
def test_a_partition_without_any_example_is_drawn_too(tmp_path: Path) -> None:
    nothing = PartitionCounts("nothing", ["a", "b"], np.zeros((3, 2), int), np.zeros((3, 3), int))
    draw_partition(nothing, tmp_path / "a.png")


@pytest.mark.slow
def test_the_settings_of_matplotlib_stay_as_they_are(tmp_path: Path) -> None:
    before = dict(matplotlib.rcParams)
    draw_partition(counts(3, 3), tmp_path / "a.png")
    assert dict(matplotlib.rcParams) == before


@pytest.mark.slow
def test_a_file_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(SpatlError, match=r"cannot write the picture .*a\.png: No such file or directory"):
        draw_partition(counts(3, 3), tmp_path / "nowhere" / "a.png")


def test_without_matplotlib_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(SpatlError, match=r"drawing needs matplotlib.*pip install"):
        draw_partition(counts(3, 3), tmp_path / "a.png")
