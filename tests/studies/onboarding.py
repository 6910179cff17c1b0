"""What a newcomer to a finished run gets from its model, by how many examples it has.

`python -m tests.studies.onboarding [SEED ...]` runs SPATL with a ResNet-8 on 3,000 synthetic images for each seed, then
lets newcomers onboard of whose images none was in it: each draws class frequencies of its own (Dirichlet 0.5) and n
examples, all of its splits together. Printed by n: the mean accuracy over all draws of each way to start, on 400 other
images of the newcomer's class frequencies, with the standard deviation over draws; and of the default, over two others,
the gain with its standard error.
"""

import argparse
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

import spatl
from spatl.artifacts import onboarding
from spatl.artifacts.model_files import RunModel
from spatl.artifacts.onboarding import OFFERED_FROM, Onboarding, federations_model, onboard
from spatl.config.experiment import ExperimentConfig
from spatl.config.loading import parse_config
from spatl.data import ClientData, Dataset, Examples, client_data, load_dataset
from spatl.data.own import as_found
from spatl.seeding import numpy_generator
from tests.studies.statistics import SETTINGS, config_of

SIZES = (10, 25, 50, 100, 200)
_FEDERATION, _POOL, _TEST = 3000, 2000, 1000
_NUM_TEST = 400
_SCRATCH = "default over from scratch"
_STATISTICS = "default over own statistics"


class World:
    """Images of one seed: the federation's, in a file, and others for newcomers, on the federation's scale."""

    def __init__(self, seed: int, directory: Path) -> None:
        options = SETTINGS["synthetic"]["data"]["options"]
        with as_found():
            found = load_dataset(
                "synthetic", seed=seed, options={**options, "num_examples": _FEDERATION + _POOL + _TEST}
            )
        self.path = directory / "federation.npz"
        pixels, labels = found.inputs[:_FEDERATION].numpy().astype(np.uint8), found.targets[:_FEDERATION].numpy()
        np.savez(self.path, images=pixels, labels=labels)
        self._images, self._labels = found.images[_FEDERATION:], found.labels[_FEDERATION:]
        self._seed = seed

    def config(self, *, rounds: int) -> ExperimentConfig:
        """The federation's."""
        values: dict[str, Any] = config_of("synthetic", seed=self._seed, rounds=rounds, alpha=0.5).model_dump()
        values["training"]["batch_norm"] = "aggregated"
        return parse_config({**values, "data": {"name": "npz", "options": {"path": str(self.path)}}})

    def newcomer(self, model: RunModel, number: int, draw: int) -> ClientData:
        """The splits of a newcomer with so many examples; its test split is a large one."""
        rng = numpy_generator(self._seed, f"newcomer-{draw}", client=number)
        frequencies = rng.dirichlet([0.5] * 10)
        pool = np.arange(_POOL)
        own = np.concatenate(
            [
                rng.choice(pool[self._labels[:_POOL].numpy() == label], count, replace=False)
                for label, count in enumerate(rng.multinomial(number, frequencies))
            ]
        )
        of_class = self._labels[_POOL:].numpy()
        test = _POOL + np.concatenate(
            [
                rng.choice(np.flatnonzero(of_class == label), count)
                for label, count in enumerate(rng.multinomial(_NUM_TEST, frequencies))
            ]
        )
        scale = model.description.normalisation
        assert scale is not None
        means, deviations = (torch.tensor(each)[:, None, None] for each in (scale.means, scale.deviations))
        images = ((self._images - means) / deviations).float()
        dataset = Dataset("newcomer", images[own], self._labels[own], 10)
        data = client_data(
            dataset, torch.arange(number), client=draw, seed=self._seed, validation_fraction=0.15, test_fraction=0.25
        )
        return replace(data, test=Examples(images[test], self._labels[test]))


def _print(number: int, found: Sequence[Onboarding]) -> None:
    """Print what newcomers with so many examples get."""
    names = [row.name for row in found[0].rows]
    by_name = {name: np.array([each.rows[place].accuracy for each in found]) for place, name in enumerate(names)}
    taken = np.array([row.accuracy for each in found for row in each.rows if row.name == each.taken])
    for name, values in {**by_name, "what is taken": taken}.items():
        print(f"  {number:4d} {name:32s} {100 * values.mean():5.1f} +- {100 * values.std(ddof=1):4.1f}")
    default = by_name[onboarding.TRAINS_NOTHING]
    for name, other in ((_SCRATCH, onboarding.FROM_SCRATCH), (_STATISTICS, onboarding.OWN_STATISTICS)):
        gain = default - by_name[other]
        error = gain.std(ddof=1) / np.sqrt(len(gain))
        print(f"  {number:4d} {name:32s} {100 * gain.mean():+5.1f} +- {100 * error:4.1f} (standard error)")
    tuned = sum(each.taken == onboarding.FINE_TUNED for each in found)
    print(f"  {number:4d} fine-tuned taken by {tuned} of {len(found)}", flush=True)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(prog="python -m tests.studies.onboarding")
    parser.add_argument("seeds", type=int, nargs="*", default=[1, 2, 3])
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--draws", type=int, default=20)
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES)
    options = parser.parse_args()
    found: dict[int, list[Onboarding]] = {number: [] for number in options.sizes}
    for seed in options.seeds:
        with tempfile.TemporaryDirectory() as scratch:
            world = World(seed, Path(scratch))
            config = world.config(rounds=options.rounds)
            result = spatl.run(config, Path(scratch) / "run", pictures=False, warn=False, progress=False)
            model = federations_model(result.directory)
        print(f"seed {seed}: the federation's clients {100 * result.summary['accuracy']:.1f} %", flush=True)
        for number in options.sizes:
            for draw in range(options.draws):
                data = world.newcomer(model, number, draw)
                found[number].append(
                    onboard(model, data, config.training, seed=draw, finetune=number >= OFFERED_FROM, compare=True)
                )
    for number, of_size in found.items():
        _print(number, of_size)


if __name__ == "__main__":
    main()
