"""Networks of the experiments: trained as a config says, with their errors on examples that nothing has seen."""

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn

from spatl.config.experiment import ExperimentConfig
from spatl.data import ClientData, Dataset, Examples, client_data, load_dataset
from spatl.errors import SpatlError
from spatl.models import build_model
from spatl.saliency.filters import Filters, filters_of
from spatl.saliency.moments import Moments, standardised
from spatl.saliency.profiles import Profiles, profiles
from spatl.seeding import generator, seeded_globals
from spatl.training.device import choose_device
from spatl.training.evaluate import evaluate
from spatl.training.local import train_

_IMAGES_AT_ONCE = 256


@dataclass(frozen=True, eq=False)
class Subject:
    """Network that experiments are made on.

    Attributes:
        seed: Everything random about it follows from it.
        network: Trained, on its device.
        filters: Its convolutions'.
        accuracy: On the test split.
        moments: Of the profiles of the validation split, by which profiles are standardised.
        errors: The test examples that it gets wrong, on its device.
        profiles: Of those.
        right: Some test examples that it gets right.
    """

    seed: int
    network: nn.Module
    filters: Filters
    accuracy: float
    moments: Moments
    errors: Examples
    profiles: Profiles
    right: Examples

    @cached_property
    def z(self) -> Tensor:
        """float64 [N, F]: the standardised profiles of the errors."""
        return standardised(self.profiles.absolute, self.moments)

    def draws(self, purpose: str) -> torch.Generator:
        """Random numbers for one purpose."""
        return generator(self.seed, f"saliency {purpose}")


def make_subject(config: ExperimentConfig, seed: int) -> Subject:
    """Train a network and look for its errors.

    Args:
        config: Data, model, training, and the sizes of the experiments.
        seed: In the place of the config's.

    Raises:
        SpatlError: It makes no error, or has no convolution, or the data are not there.
    """
    dataset = load_dataset(config.data.name, seed=seed, options=config.data.options)
    data = _splits(dataset, config, seed)
    network = _trained(dataset, data, config, seed)
    filters = filters_of(network)
    moments = Moments.of(profiles(network, data.validation, filters).absolute)
    accuracy = evaluate(network, data.test).accuracy
    predictions = logits_of(network, data.test.images).argmax(1).to(data.test.targets.device)
    wrong = (predictions != data.test.targets).nonzero().flatten()
    right = (predictions == data.test.targets).nonzero().flatten()
    if len(wrong) < 2:
        raise SpatlError(
            f"the network of seed {seed} gets {len(wrong)} of {len(data.test)} test examples wrong, and the "
            "experiments need two errors at least: train for fewer epochs (saliency.epochs), or take harder data"
        )
    errors = data.test.at(wrong[: config.saliency.most_errors])
    return Subject(seed, network, filters, accuracy, moments, errors, profiles(network, errors, filters),
                   data.test.at(right[: config.saliency.most_errors]))  # fmt: skip


def _splits(dataset: Dataset, config: ExperimentConfig, seed: int) -> ClientData:
    """All examples, divided like those of one client, on the device."""
    device = choose_device(config.training.device)
    data = client_data(
        dataset, torch.arange(len(dataset)), client=0, seed=seed,
        validation_fraction=config.data.validation_fraction, test_fraction=config.data.test_fraction,
    )  # fmt: skip
    return ClientData(data.train.to(device), data.validation.to(device), data.test.to(device))


def _trained(dataset: Dataset, data: ClientData, config: ExperimentConfig, seed: int) -> nn.Module:
    network, _ = build_model(
        config.model.name, num_classes=dataset.num_classes, in_channels=int(dataset.images.shape[1]),
        image_size=int(dataset.images.shape[2]), cut=(), options=config.model.options, seed=seed,
    )  # fmt: skip
    network = network.to(data.train.images.device)
    parameters = {name: each for name, each in network.named_parameters() if each.requires_grad}
    with seeded_globals(seed, "layers"):
        train_(network, parameters, data.train, config.training, generator=generator(seed, "batches"),
               epochs=config.saliency.epochs)  # fmt: skip
    return network.eval()


def logits_of(network: nn.Module, images: Tensor) -> Tensor:
    """Return float32 [N, K] on the CPU: the logits of images on the network's device, some at a time."""
    with torch.no_grad():
        return torch.cat([network(part).float().cpu() for part in torch.split(images, _IMAGES_AT_ONCE)])
