"""Pre-training of the policy that ships with the package: several families of networks, two objectives, ten budgets.

The networks learn the handwritten digits, half of them under noise that keeps them from being certain, and each is
taken early and late in its training, as a federation's rounds would meet it. No test split is looked at.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Final

import torch
from stable_baselines3.common.vec_env import SubprocVecEnv

from agents.lab.environment import Case, SelectionEnv
from agents.lab.networks import Candidate, Trained, candidate, local_training, pooled_training, worth_and_trial
from agents.lab.pool import process_pool
from agents.lab.ppo import train_policy
from agents.measurement import Trial, reward
from agents.policy import save_policy, ship_policy
from agents.selection_problem import Objective
from spatl.channels.costs import Budget
from spatl.channels.selection import Selection, select_all
from spatl.config.loading import parse_config
from spatl.data import Examples
from spatl.errors import ConfigError
from spatl.json_files import write_json
from spatl.rounds.blueprint import Blueprint, make_blueprint
from spatl.seeding import derive, generator
from spatl.training.device import reproducible

DEFAULT_SEED: Final = 1
DEFAULT_STEPS: Final = 32_768
_WORKERS: Final = 2  # part of the result: each draws from networks of its own
_CLIENTS: Final = 3
_STAGES: Final = (2, 8)  # epochs after which a network is taken
_EXAMPLES: Final = 128  # in a reward
_LEAST_GAIN: Final = 0.2
_SHARES: Final = (0.15, 0.2, 0.3, 0.4, 0.55)
BUDGETS: Final = tuple(Budget(kind, share) for kind in ("flops_ratio", "keep_ratio") for share in _SHARES)

OnNetwork = Callable[[int, int], None]
OnUpdate = Callable[[int, float], None]


@dataclass(frozen=True)
class Source:
    """Source of a network to train: a built-in model on the digits, with noise of so many standard deviations."""

    model: str
    width: float | None
    noise: float
    alpha: float


SOURCES: Final = tuple(
    Source(model, width, noise, alpha)
    for model, width in (
        ("resnet56", 0.5),
        ("resnet32", 0.5),
        ("resnet8", 1.0),
        ("resnet56", 0.75),
        ("vgg11", 0.25),
        ("mobilenet", 0.5),
        ("vgg11", 0.35),
        ("mobilenet", 0.75),
        ("cnn", None),
    )
    for noise, alpha in ((0.0, 0.3), (1.0, 1.0))
)


def pretrain(
    directory: Path,
    *,
    seed: int = DEFAULT_SEED,
    steps: int = DEFAULT_STEPS,
    sources: Sequence[Source] = SOURCES,
    on_network: OnNetwork = lambda done, total: None,
    on_update: OnUpdate = lambda steps, reward: None,
) -> list[dict[str, float]]:
    """Train the networks, then the policy on them, in two processes.

    Args:
        directory: Where `policy.safetensors`, `policy.json` (the same as it ships) and `pretrain.json` go.
        seed: Everything random follows from it.
        steps: How many selections PPO measures.
        sources: The networks.
        on_network: Called with how many networks are trained, and how many there are.
        on_update: Called with the steps so far and the mean reward since the last call.

    Returns:
        Steps and mean reward of each batch of episodes.

    Raises:
        ConfigError: There are no steps to make.
    """
    if steps < 1:
        raise ConfigError(f"--steps must be at least 1, got {steps}")
    directory.mkdir(parents=True, exist_ok=True)
    trained = _train_networks(sources, seed, on_network)
    halves = [trained[worker::_WORKERS] for worker in range(_WORKERS)]
    largest = max(num_groups for _, _, num_groups in trained)
    history: list[dict[str, float]] = []

    def record(done: int, mean_reward: float) -> None:
        history.append({"steps": done, "reward": mean_reward})
        on_update(done, mean_reward)

    environment = SubprocVecEnv(
        [partial(_environment, [(s, t) for s, t, _ in half], seed, largest) for half in halves if half],
        start_method="spawn",
    )
    try:
        with reproducible(threads=1):
            policy = train_policy(environment, steps=steps, seed=derive(seed, "agent") % 2**31, on_update=record)
    finally:
        environment.close()
    save_policy(policy, directory / "policy.safetensors")
    ship_policy(policy, directory / "policy.json")
    write_json(
        directory / "pretrain.json",
        {
            "seed": seed,
            "steps": steps,
            "networks": [vars(source) for source in sources],
            "budgets": [vars(budget) for budget in BUDGETS],
            "torch": torch.__version__,
            "history": history,
        },
    )
    return history


def _train_networks(
    sources: Sequence[Source], seed: int, on_network: OnNetwork
) -> list[tuple[Source, list[Trained], int]]:
    on_network(0, len(sources))
    results = []
    with process_pool(_WORKERS) as pool:
        for done, result in enumerate(pool.map(_train_network, sources, [seed] * len(sources)), start=1):
            results.append(result)
            on_network(done, len(sources))
    return results


def _train_network(source: Source, seed: int) -> tuple[Source, list[Trained], int]:
    blueprint = _blueprint(source, seed)
    trained = [
        each
        for snapshot in pooled_training(blueprint, stages=_STAGES)
        for each in local_training(blueprint, snapshot, range(_CLIENTS))
    ]
    return source, trained, len(blueprint.layout.groups)


def _blueprint(source: Source, seed: int) -> Blueprint:
    config: dict[str, Any] = {
        "seed": derive(seed, f"agent-{source}") % 2**31,
        "method": "spatl-paper",  # the encoder without the classifier, whose channels nothing reads
        "partition": {"num_clients": _CLIENTS, "alpha": source.alpha, "min_examples": 100},
        "model": {"name": source.model, "options": {} if source.width is None else {"width": source.width}},
        "data": {"name": "digits", "validation_fraction": 0.3, "test_fraction": 0.1},
        "training": {"local_epochs": 2, "batch_size": 32, "learning_rate": 0.05, "device": "cpu"},
        "selection": {"selector": "all"},
    }
    blueprint = make_blueprint(parse_config(config))
    if source.noise == 0:
        return blueprint
    images = blueprint.dataset.images
    noise = torch.randn(images.shape, generator=generator(blueprint.config.seed, "agent-noise"))
    return replace(blueprint, dataset=replace(blueprint.dataset, inputs=images + source.noise * noise))


def _environment(networks: Sequence[tuple[Source, list[Trained]]], seed: int, max_groups: int) -> SelectionEnv:
    torch.set_num_threads(1)
    cases: list[Case] = []
    for source, trained in networks:
        blueprint = _blueprint(source, seed)
        for position, each in enumerate(trained):
            made = candidate(blueprint, each)
            cases.append(_case(blueprint, made, "pruned"))
            if position == 0:  # the update's own energy leaves little to improve on: enough to learn that
                cases.append(_case(blueprint, made, "sent"))
    return SelectionEnv(cases, BUDGETS, max_groups=max_groups)


def _case(blueprint: Blueprint, made: Candidate, objective: Objective) -> Case:
    validation = made.data.validation
    examples = Examples(validation.images[:_EXAMPLES], validation.targets[:_EXAMPLES])
    worth, trial = worth_and_trial(blueprint, made, examples, objective)
    scale = _scale(blueprint, trial) if objective == "sent" else 1.0
    return Case(blueprint.costs, worth, trial, objective, scale)


def _scale(blueprint: Blueprint, trial: Trial) -> float:
    """Return one over the gain of the whole update, so that the reward is the share of it that a selection keeps."""
    whole = select_all(blueprint.layout)
    nothing = Selection(torch.zeros_like(whole.mask))
    return 1 / max(_LEAST_GAIN, reward(trial(whole), trial(nothing)))
