"""The bare loop: the same networks on the same examples in PyTorch alone, as one would write it without a federation.

One model instance trains on one client's examples after the other, with PyTorch's own optimizer, and is evaluated once
for each client, as the federation's clients do. It sends nothing, keeps nothing and selects nothing: what an engine
takes beyond it is the price of being a federation.
"""

import torch
from torch import nn
from torch.nn import functional as F

from spatl.data import Examples
from spatl.models.copies import duplicate
from spatl.rounds.blueprint import Blueprint
from spatl.training.step_weight import TrainingSettings


class BareLoop:
    """Loop over the clients of a federation.

    Args:
        blueprint: The federation; of a classification.
    """

    def __init__(self, blueprint: Blueprint) -> None:
        self._settings = blueprint.config.training
        self._model = duplicate(blueprint.model)
        self._clients = [blueprint.client_data(each) for each in range(blueprint.config.partition.num_clients)]

    def round_(self) -> None:
        """Evaluate and train once for each client."""
        for data in self._clients:
            evaluate(self._model, data.test)
            train(self._model, data.train, self._settings)


def train(model: nn.Module, examples: Examples, settings: TrainingSettings) -> None:
    """Train a network in place by PyTorch's own optimizer."""
    model.train()
    optimizer = torch.optim.SGD(
        model.parameters(), lr=settings.learning_rate, momentum=settings.momentum,
        weight_decay=settings.weight_decay, nesterov=settings.nesterov,
    )  # fmt: skip
    for _ in range(settings.local_epochs):
        for rows in torch.split(torch.randperm(len(examples)), settings.batch_size):
            if len(rows) == 1:  # which BatchNorm cannot train on
                continue
            optimizer.zero_grad()
            loss = F.cross_entropy(model(examples.inputs[rows]), examples.targets[rows])
            loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
            optimizer.step()


def evaluate(model: nn.Module, examples: Examples) -> tuple[float, int]:
    """Return the sum of the losses, and how many are right."""
    model.eval()
    with torch.no_grad():
        outputs = model(examples.inputs)
        loss = F.cross_entropy(outputs, examples.targets, reduction="sum")
        return float(loss), int((outputs.argmax(1) == examples.targets).sum())
