"""What folders stand for: classes, owners, splits; told where it is a guess, and refused where it is none."""

from pathlib import Path

import pytest
import torch

from spatl.config.loading import parse_config
from spatl.data import Dataset, load_dataset
from spatl.data.dataset import SPLITS
from spatl.rounds.client_data import load_clients, split_client
from tests.support.formats import png, random_pixels
from tests.support.refusals import message


def write(root: Path, *names: str, per_folder: int = 1) -> str:
    """Write so many images into each folder."""
    for number, name in enumerate(names):
        (root / name).mkdir(parents=True, exist_ok=True)
        for place, image in enumerate(random_pixels(per_folder, 8, 8, 3, seed=number)):
            (root / name / f"{place}.png").write_bytes(png(image))
    return str(root)


def read(root: Path, *names: str, **options: object) -> Dataset:
    return load_dataset("folder", seed=1, options={"path": write(root, *names), **options})


def labels_of(dataset: Dataset) -> list[str]:
    return [dataset.class_names[label] for label in dataset.targets.tolist()]


def splits_of(dataset: Dataset) -> list[str]:
    assert dataset.splits is not None
    return [SPLITS[split] for split in dataset.splits.tolist()]


def test_classes_that_are_numbers_are_in_their_order(tmp_path: Path) -> None:
    assert read(tmp_path, "10", "9", "0").class_names == ("0", "9", "10")


@pytest.mark.parametrize(
    ("folders", "labels", "splits"),
    [
        (("train/cat", "train/dog", "test/cat"), ["cat", "cat", "dog"], ["test", "train", "train"]),
        (("Training/cat", "Training/dog", "VAL/dog"), ["cat", "dog", "dog"], ["train", "train", "validation"]),
        (
            ("train/cat", "train/dog", "valid/cat", "test/dog"),
            ["cat", "cat", "dog", "dog"],
            ["train", "validation", "test", "train"],
        ),
        (("cat/train", "cat/test", "dog/train"), ["cat", "cat", "dog"], ["test", "train", "train"]),
        (("data/train/1", "data/train/2", "data/test/1"), ["1", "1", "2"], ["test", "train", "train"]),
    ],
)
def test_splits_are_kept_as_they_are_filed(
    tmp_path: Path, folders: tuple[str, ...], labels: list[str], splits: list[str]
) -> None:
    dataset = read(tmp_path, *folders)
    assert (labels_of(dataset), splits_of(dataset)) == (labels, splits)
    assert any("the splits are kept as they are filed" in remark for remark in dataset.remarks())
    pooled = read(tmp_path, *folders, pool=True)
    assert (labels_of(pooled), pooled.splits) == (labels, None)


def test_train_alone_is_no_split(tmp_path: Path) -> None:
    dataset = read(tmp_path, "train/cat", "train/dog")
    assert (dataset.class_names, dataset.splits) == (("cat", "dog"), None)
    assert dataset.remarks() == (f"folder: read from {tmp_path / 'train'}, the only folder with images in {tmp_path}",)


def test_owners_have_the_same_classes(tmp_path: Path) -> None:
    dataset = read(tmp_path, "alice/cat", "alice/dog", "bob/cat")
    assert labels_of(dataset) == ["cat", "cat", "dog"]
    assert dataset.groups is not None
    assert dataset.groups.tolist() == [0, 1, 0]
    assert dataset.remarks() == (
        f"folder: the folders in {tmp_path} are taken for 2 owners (alice, bob) of 2 classes (cat, dog), "
        "whom the partition natural makes clients: set data.options.layout to owners, or to classes if they are the "
        "classes",
    )
    said = read(tmp_path, layout="owners")
    assert (labels_of(said), said.groups.tolist(), said.remarks()) == (["cat", "cat", "dog"], [0, 1, 0], ())
    classes = read(tmp_path, layout="classes")
    assert (classes.class_names, classes.groups, classes.remarks()) == (("alice", "bob"), None, ())


def test_owners_may_have_splits(tmp_path: Path) -> None:
    for root, folders in (
        (tmp_path / "above", ("train/a/cat", "train/b/cat", "train/a/dog", "test/b/dog")),
        (tmp_path / "below", ("a/train/cat", "b/train/cat", "a/train/dog", "b/test/dog")),
    ):
        dataset = read(root, *folders)
        assert labels_of(dataset) == ["cat", "cat", "dog", "dog"]
        assert sorted(zip(dataset.groups.tolist(), splits_of(dataset), strict=True)) == [
            (0, "train"), (0, "train"), (1, "test"), (1, "train"),
        ]  # fmt: skip


def test_folders_in_a_class_are_no_classes(tmp_path: Path) -> None:
    assert read(tmp_path / "one", "cat/images", "dog/images").class_names == ("cat", "dog")
    assert read(tmp_path / "two", "cat", "cat/crops", "dog").class_names == ("cat", "dog")
    assert read(tmp_path / "three", "cat/old", "cat/new", "dog/old", layout="classes").class_names == ("cat", "dog")


@pytest.mark.parametrize(
    ("folders", "told"),
    [
        (("train/cat", "train/dog", "test/cat", "extra/cat"), "has test and train beside extra: expected train with"),
        (("train/cat", "train/dog", "unlabelled"), "has train beside unlabelled: expected train with"),
        (("val/cat", "test/cat"), "has test and val but no train: expected train with test or val"),
        (("train/cat", "train/dog", "test"), "test/0.png lies in test and in no folder of a class: expected"),
        (("a/cat", "b/dog"), "hold folders of images (cat, dog), no two alike: set data.options.layout to classes if"),
        (("a/cat", "a/dog", "b/cat", "b"), "look like owners of the classes cat, dog, but"),
    ],
)
def test_what_may_be_several_things_is_refused(tmp_path: Path, folders: tuple[str, ...], told: str) -> None:
    assert told in message("folder", path=write(tmp_path, *folders))


def test_owners_that_are_none_are_refused(tmp_path: Path) -> None:
    assert "/OWNER/CLASS/IMAGE, got" in message("folder", path=write(tmp_path, "a/cat", "b"), layout="owners")
    assert "layout must be auto or classes or owners, got 'x'" in message("folder", path=str(tmp_path), layout="x")


def test_what_is_passed_over_is_told(tmp_path: Path) -> None:
    write(tmp_path, "cat", "dog", "__MACOSX/cat", ".cache/cat")
    (tmp_path / "eel" / "deep").mkdir(parents=True)
    (tmp_path / "cat" / ".DS_Store").touch()
    (tmp_path / "cat" / "._0.png").write_bytes(b"not an image")
    (tmp_path / "cover.png").touch()
    dataset = read(tmp_path)
    assert len(dataset) == 2
    assert dataset.remarks() == (
        "folder: no images in eel, passed over",
        f"folder: passed over 1 images in {tmp_path} itself, where no folder says their class",
    )


def test_links_are_followed_once(tmp_path: Path) -> None:
    write(tmp_path / "elsewhere", "pictures")
    write(tmp_path / "data", "dog")
    (tmp_path / "data" / "cat").symlink_to(tmp_path / "elsewhere" / "pictures")
    (tmp_path / "data" / "dog" / "back").symlink_to(tmp_path / "data")
    assert labels_of(read(tmp_path / "data")) == ["cat", "dog"]


def test_a_class_that_is_in_no_training_split_is_named(tmp_path: Path) -> None:
    dataset = read(tmp_path, "train/cat", "train/dog", "test/eel")
    assert dataset.class_names == ("cat", "dog", "eel")
    assert "folder: no training example of the classes eel" in dataset.remarks()


def test_images_of_a_test_folder_are_every_clients_test_examples_and_nobodys_training_examples(tmp_path: Path) -> None:
    path = write(tmp_path, "train/cat", "train/dog", "test/cat", "test/dog", per_folder=12)
    config = parse_config({
        "data": {"name": "folder", "options": {"path": path}},
        "partition": {"name": "iid", "num_clients": 3, "min_examples": 2},
    })  # fmt: skip
    dataset, parts = load_clients(config)
    assert sorted(index for part in parts for index in part.tolist()) == list(range(48))
    assert [splits_of(dataset).count(split) for split in SPLITS] == [24, 0, 24]
    of_test = torch.nonzero(dataset.splits == SPLITS.index("test")).flatten()
    assert [len(set(part.tolist()) & set(of_test.tolist())) for part in parts] == [8, 8, 8]


def test_a_client_of_whose_classes_there_is_no_test_example_has_none(tmp_path: Path) -> None:
    path = write(tmp_path, "train/cat", "train/dog", per_folder=12)
    write(tmp_path, "test/cat")
    config = parse_config({
        "data": {"name": "folder", "options": {"path": path}},
        "partition": {"name": "iid", "num_clients": 2, "min_examples": 2},
    })  # fmt: skip
    dataset, parts = load_clients(config)
    without = min(range(2), key=lambda client: int((dataset.splits[parts[client]] == 2).sum()))
    sizes = split_client(config, dataset, parts, without).sizes
    assert sizes[2] == 0
    assert sizes[0] > 0
