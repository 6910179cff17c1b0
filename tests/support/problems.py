"""Small problems for the agent's tests: real networks, measured channels, any budget."""

from functools import cache

import torch

from agents.lab.environment import Case
from agents.lab.networks import Candidate, Snapshot, Trained, candidate
from agents.policy import GraphPolicy
from agents.selection_problem import Problem
from spatl.channels.costs import Budget
from spatl.config.loading import parse_config
from spatl.rounds.blueprint import Blueprint, make_blueprint
from spatl.training.evaluate import Evaluation


@cache
def blueprint_for(model: str, **options: float) -> Blueprint:
    """Two clients on the digits, with an untrained network; `options` are the model's."""
    return make_blueprint(
        parse_config(
            {
                "seed": 5,
                "method": "spatl-paper",
                "partition": {"name": "iid", "num_clients": 2},
                "model": {"name": model, "options": options},
                "training": {"local_epochs": 1, "device": "cpu"},
                "selection": {"selector": "all"},
            }
        )
    )


@cache
def candidate_for(model: str, **options: float) -> Candidate:
    """A network whose weights moved a little from the start, as by training."""
    blueprint = blueprint_for(model, **options)
    received = blueprint.initial_encoder()
    draws = torch.Generator().manual_seed(1)
    tensors = {
        name: tensor + 0.05 * torch.randn(tensor.shape, generator=draws) if tensor.is_floating_point() else tensor
        for name, tensor in Snapshot.of(blueprint.model).tensors.items()
        if "running" not in name
    }
    start = Snapshot.of(blueprint.model).tensors
    return candidate(blueprint, Trained(0, received, Snapshot({**start, **tensors})))


def problem_for(model: str, budget: Budget, **options: float) -> Problem:
    """The agent's problem of that network: channels worth their signal."""
    return Problem(blueprint_for(model, **options).costs, budget, candidate_for(model, **options).signal, "pruned")


def drawn_policy(seed: int = 0, *, scale: float = 0.3) -> GraphPolicy:
    """A policy with random weights everywhere, the head included."""
    draws = torch.Generator().manual_seed(seed)
    policy = GraphPolicy()
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.copy_(scale * torch.randn(parameter.shape, generator=draws))
    return policy.double().eval()


def case_of(model, counting=None, **options):
    """A case whose trial needs no network: what is kept of the last group is the accuracy."""
    costs = blueprint_for(model, **options).costs

    def trial(selection):
        """The more of the last group, the better."""
        if counting is not None:
            counting.append(selection)
        kept = int(selection.counts(costs.layout)[-1]) / costs.layout.groups[-1].size
        return Evaluation(kept, 1 - kept)

    return Case(costs, candidate_for(model, **options).signal, trial, "pruned")
