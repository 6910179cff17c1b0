"""Data of a newcomer: what lies on its device, with the labels and on the scale of a federation that it was not in.

Classes are matched by name. Pixels are scaled as those of the federation were, not by the newcomer's own mean and
deviation: the network has learnt from the former.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import torch

from spatl.artifacts.description import ModelDescription
from spatl.config.experiment import ExperimentConfig
from spatl.config.loading import load_config, parse_config
from spatl.data import DATASETS, ClientData, Dataset, client_data, load_dataset
from spatl.data.own import Agreement, as_found, fit
from spatl.errors import ConfigError, DataError
from spatl.extensions.references import is_reference
from spatl.runs.files import CONFIG

FEWEST: Final = 2
"""Examples that each split of a newcomer must have."""
_OF_ARRAYS = ".npz"


def newcomers_config(directory: Path, description: ModelDescription) -> ExperimentConfig:
    """Return the config of a run, for the newcomer's splits and training.

    Where only the model was passed on, without the run, it is what the method's defaults say.

    Args:
        directory: The run's, or that of its model.
        description: Of the model.

    Raises:
        ConfigError: The file holds none.
    """
    for path in (directory / CONFIG, directory.parent / CONFIG):
        if path.is_file():
            return load_config(path)
    return parse_config({"method": description.method})


def source_of(
    data: str, options: Mapping[str, Any], description: ModelDescription, config: ExperimentConfig
) -> tuple[str, dict[str, Any]]:
    """Return the name of a data source and its options, from what a user says of it.

    Args:
        data: A source's name, `package.module:load`, a folder of class folders, or an .npz file.
        options: Of the source. Those of the run hold where the source is the same and nothing else is said.
        description: Of the model: without options of the run, images of a folder are made what it takes.
        config: The run's.

    Raises:
        ConfigError: It is none of these.
    """
    path = Path(data).expanduser()
    if path.is_dir():
        name, given = "folder", {"path": str(path)}
    elif path.suffix == _OF_ARRAYS and path.exists():
        name, given = "npz", {"path": str(path)}
    elif data in DATASETS or is_reference(data):
        name, given = data, {}
    else:
        raise ConfigError(
            f"--data must be a folder of class folders, an .npz file or a data set ({', '.join(sorted(DATASETS))}, "
            f"package.module:load), got {data!r}, which is none of these"
        )
    channels, height, width = description.image_shape(what="spatl onboard")
    runs_own: dict[str, Any] = {}
    if name == config.data.name:
        runs_own = {key: value for key, value in config.data.options.items() if key not in ("path", "hub", "pool")}
    elif name == "folder":
        runs_own = {"channels": "grey" if channels == 1 else "colour"}
        runs_own |= {"image_size": height} if height == width else {}
    return name, {**runs_own, **given, **options}


def newcomers_dataset(
    name: str, options: Mapping[str, Any], description: ModelDescription, *, seed: int = 1
) -> Dataset:
    """Read a newcomer's examples, with the federation's labels and on its scale.

    Args:
        name: Of the data source.
        options: Of it.
        description: Of the federation's model.
        seed: For a source that draws something.

    Raises:
        DataError: They cannot be read, are of a class or shape that the model does not know, or nobody knows the scale.
    """
    scale = description.normalisation
    if scale is None and name in DATASETS:
        raise DataError(
            f"the model's images came ready from {description.data}, and nothing says how pixels become such: give "
            f"--data package.module:load, a function that makes them, not {name}"
        )
    with as_found():
        found = load_dataset(name, seed=seed, options=options)
    images, shape = found.images, found.images.shape[1:]
    if found.normalisation is not None:  # a source that scales its values in any case
        means, deviations = (
            torch.tensor(each, dtype=torch.float64)[:, None, None]
            for each in (found.normalisation.means, found.normalisation.deviations)
        )
        images = (images.double() * deviations + means).float()
    num_channels = int(shape[0])
    agreement = Agreement(
        description.class_names,
        description.image_shape(what="spatl onboard"),
        scale.means if scale is not None else (0.0,) * num_channels,
        scale.deviations if scale is not None else (1.0,) * num_channels,
    )
    return _fitted(replace(found, inputs=images, normalisation=None), agreement)


def newcomers_splits(dataset: Dataset, config: ExperimentConfig, *, client: int, seed: int) -> ClientData:
    """Divide a newcomer's examples as the run's clients divide theirs.

    Args:
        dataset: As `newcomers_dataset` returns it.
        config: The run's.
        client: The newcomer's number.
        seed: Draws them.

    Raises:
        DataError: A split has fewer than `FEWEST` examples.
    """
    fractions = config.data.validation_fraction, config.data.test_fraction
    if dataset.splits is None:
        _check_sizes(len(dataset), *_sizes(len(dataset), *fractions), fractions=fractions)
    data = client_data(
        dataset, torch.arange(len(dataset)), client=client, seed=seed, validation_fraction=fractions[0],
        test_fraction=fractions[1],
    )  # fmt: skip
    _check_sizes(len(dataset), len(data.train), len(data.validation), len(data.test), fractions=fractions)
    return data


def _fitted(dataset: Dataset, agreement: Agreement) -> Dataset:
    """The data set with the labels and the scale of the federation.

    Raises:
        DataError: It has another shape, or classes that the federation does not know.
    """
    shape = tuple(dataset.images.shape[1:])
    if shape != agreement.shape:
        expected, got = (" x ".join(map(str, each)) for each in (agreement.shape, shape))
        raise DataError(f"the model takes images of {expected} (channels x height x width), got {got}")
    return fit(dataset, agreement)


def _sizes(number: int, validation_fraction: float, test_fraction: float) -> tuple[int, int, int]:
    """Training, validation and test examples of so many, as `spatl.data.splits` has it."""
    validation, test = max(1, round(number * validation_fraction)), max(1, round(number * test_fraction))
    return number - validation - test, validation, test


def _check_sizes(number: int, train: int, validation: int, test: int, *, fractions: tuple[float, float]) -> None:
    if min(train, validation, test) >= FEWEST:
        return
    enough = next(each for each in range(3 * FEWEST, 1_000_000) if min(_sizes(each, *fractions)) >= FEWEST)
    raise DataError(
        f"{number} examples are too few for a newcomer: {max(train, 0)} for training, {validation} for validation and "
        f"{test} for test, expected at least {FEWEST} of each; bring {enough} or more"
    )
