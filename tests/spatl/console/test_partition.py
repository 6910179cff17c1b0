"""`spatl partition`: what it prints, writes and returns."""

import importlib
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from spatl.config.experiment import ExperimentConfig
from spatl.config.loading import parse_config
from spatl.console.main import main
from spatl.console.partition import count_partition, counts_table, print_counts
from spatl.report.partition_figure import PartitionCounts
from spatl.rounds.client_data import load_clients, split_client
from tests.support.terminals import pipe, shown, terminal, widest_line


@pytest.fixture(autouse=True, scope="module")
def flwr_datasets_is_there() -> None:
    """The library, whose import takes seconds that are nobody's test and not for every process that collects tests."""
    importlib.import_module("flwr_datasets.partitioner")


@pytest.fixture
def small_config_path(tmp_path: Path) -> str:
    path = tmp_path / "small.yaml"
    path.write_text(
        "data: {name: synthetic, options: {num_examples: 600, image_size: 8}}\npartition: {name: iid, num_clients: 6}\n"
    )
    return str(path)


@pytest.fixture
def owned(tmp_path: Path) -> str:
    """Sixty images of three owners: the first has 10, the others 25 each."""
    groups = np.repeat([0, 1, 2], [10, 25, 25])
    images = np.random.default_rng(0).integers(0, 256, (60, 8, 8), dtype=np.uint8)
    np.savez(tmp_path / "owned.npz", images=images, labels=np.arange(60) % 3, groups=groups)
    return str(tmp_path / "owned.npz")


def small(**partition: object) -> ExperimentConfig:
    options = {"num_examples": 600, "image_size": 8}
    return parse_config({"data": {"name": "synthetic", "options": options}, "partition": partition})


@pytest.mark.slow
def test_it_prints_a_row_per_client_and_the_path_of_the_picture(
    small_config_path: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "new" / "picture.png"
    assert main(["partition", small_config_path, "--out", str(out)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "synthetic, iid: 6 clients, seed 1" in lines[0]
    rows = {line.split()[0]: line.split()[1:] for line in lines[1:-1]}
    assert list(rows) == ["client", *map(str, range(6)), "all"]
    assert rows["client"] == [*map(str, range(10)), "all", "train", "validation", "test"]
    assert rows["3"][-4:] == ["100", "60", "15", "25"]
    assert rows["all"] == ["60"] * 10 + ["600", "360", "90", "150"]
    assert lines[-1] == str(out)
    assert out.stat().st_size > 0


@pytest.mark.slow
def test_many_classes_are_summed_up(small_config_path: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    override = "data.options.num_classes=30"
    assert main(["partition", small_config_path, "--set", override, "--out", str(tmp_path / "a.png")]) == 0
    printed = capsys.readouterr().out
    assert "largest class" in printed
    assert "of 30" in printed


@pytest.mark.slow
def test_the_picture_goes_below_runs_when_no_file_is_named(
    small_config_path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["partition", small_config_path, "--set", "seed=4"]) == 0
    assert (tmp_path / "runs" / "partition-synthetic-iid-6-4.png").exists()
    assert "runs/partition-synthetic-iid-6-4.png" in capsys.readouterr().out


@pytest.mark.slow
def test_what_belongs_to_no_client_is_told(owned: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "owned.yaml"
    path.write_text(f"data: {{name: npz, options: {{path: {owned}}}}}\npartition: {{name: natural, num_clients: 2, "
                    "min_examples: 20}\n")  # fmt: skip
    assert main(["partition", str(path), "--out", str(tmp_path / "a.png")]) == 0
    assert "10 of 60 examples belong to no client" in capsys.readouterr().out


def write_named(directory: Path, names: Sequence[str]) -> str:
    """A config of sixty images in one subfolder per name."""
    images = np.random.default_rng(0).integers(0, 256, (60, 8, 8, 3), dtype=np.uint8)
    for position, image in enumerate(images):
        file = directory / "images" / names[position % len(names)] / f"{position}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(file)
    config = {"data": {"name": "folder", "options": {"path": str(directory / "images")}},
              "partition": {"name": "iid", "num_clients": 2}}  # fmt: skip
    (directory / "named.yaml").write_text(json.dumps(config))
    return str(directory / "named.yaml")


@pytest.mark.slow
@pytest.mark.parametrize("num_classes", [3, 15])
def test_square_brackets_in_names_and_paths_are_printed_as_they_are(
    num_classes: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = [f"{number:02d}{mark}" for number in range(num_classes // 3) for mark in ("[red]", "[b", ":cat:")]
    out = tmp_path / "o[bold]" / "[/b].png"
    assert main(["partition", write_named(tmp_path, names), "--out", str(out)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == str(out)
    assert out.exists()
    if num_classes == 3:
        assert lines[1].split()[1:4] == ["00:cat:", "00[b", "00[red]"]
    else:
        assert "00:cat:: " in lines[-2]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--out", "picture.pdf"], "--out must name a .png file, got picture.pdf"),
        (["--set", "partition.name=natural"], "natural: the data set does not say whose its examples are"),
        (["--set", "partition.nme=iid"], "partition.nme: unknown key"),
        (["--set", "data={name: cifar10, options: {path: nowhere}}"], "no CIFAR-10 in"),
        (["--out", "/proc/no/picture.png"], "cannot make the picture's directory /proc/no"),
    ],
)
def test_a_mistake_is_one_line_and_status_2(
    small_config_path: str, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["partition", small_config_path, *arguments]) == 2
    printed = capsys.readouterr().err
    assert message in printed
    assert printed.count("\n") == 1


def test_the_counts_are_those_of_the_clients(owned: str) -> None:
    config = parse_config({"data": {"name": "npz", "options": {"path": owned}},
                           "partition": {"name": "natural", "num_clients": 3}})  # fmt: skip
    found, num_examples = count_partition(config)
    assert num_examples == 60
    assert found.counts.tolist() == [[4, 3, 3], [8, 9, 8], [8, 8, 9]]
    assert found.splits.sum(axis=1).tolist() == [10, 25, 25]
    assert found.title == "npz, natural: 3 clients, seed 1"


def test_the_title_names_the_settings_that_matter() -> None:
    title = count_partition(small(name="dirichlet", num_clients=4, alpha=0.7, feature_noise=0.1))[0].title
    assert title == "synthetic, dirichlet (alpha 0.7, feature_noise 0.1): 4 clients, seed 1"


def test_noise_grows_with_the_number_of_the_client() -> None:
    """Client i of 4 (from 1) has images with noise of variance sigma * i / 4, sigma = 0.8."""
    noisy, clean = (small(name="iid", num_clients=4, feature_noise=sigma) for sigma in (0.8, 0.0))
    dataset, parts = load_clients(noisy)
    for client, expected in enumerate((0.2, 0.4, 0.6, 0.8)):
        images, same = (split_client(config, dataset, parts, client).train.inputs for config in (noisy, clean))
        assert float((images - same).var()) == pytest.approx(expected, rel=0.05)


@pytest.mark.parametrize("width", [60, 80, 120, None])
@pytest.mark.parametrize("classes", [3, 10, 40])
def test_the_table_is_whole_at_every_width(width: int | None, classes: int) -> None:
    """A column for each class where there is room, and in a pipe; the short table otherwise."""
    numbers = np.arange(4 * classes).reshape(4, classes) * 100 + 1
    splits = np.stack([numbers.sum(axis=1)] * 3, axis=1)
    counts = PartitionCounts("a title", tuple(f"class-{number}" for number in range(classes)), numbers, splits)
    console = pipe() if width is None else terminal(width)
    print_counts(console, counts_table(counts), counts)
    text = shown(console)
    assert "…" not in text
    assert f"{splits[:, 0].sum():,}" in text
    if width is not None:
        assert widest_line(text) <= width
    else:
        assert text.count("\n") == 4 + 3
    if classes == 3 and (width is None or width >= 80):
        assert "class-0" in text
