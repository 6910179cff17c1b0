"""Selectors of the user's own, `selection.selector: package.module:name`, checked where they could do harm.

The user's is a function of a `SelectionRequest`, or a class that is made once, without arguments, and then called. It
answers with a `Choice`, or just with what each channel is worth, which is then cut to the budget.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from spatl.channels.costs import Budget, Costs, smallest_budget
from spatl.channels.selection import Selection
from spatl.data import ClientData
from spatl.errors import BudgetError, ConfigError, SpatlError, told
from spatl.extensions.references import resolve
from spatl.seeding import generator, seeded_globals
from spatl.selection.projection import project_ranking
from spatl.selection.protocol import Choice, SelectionRequest
from spatl.selection.table import SELECTOR_DOOR


class UsersSelector:
    """A selector of the user's, whose answers are checked before anything is sent.

    Args:
        reference: `"package.module:name"`.

    Attributes:
        what: What it is called in messages.

    Raises:
        ConfigError: It is not there, or no selector, or its class cannot be made.
    """

    def __init__(self, reference: str) -> None:
        found = resolve(reference, SELECTOR_DOOR, accepts=_selects)
        self.what = f"selector {reference!r}"
        self._select: Callable[[SelectionRequest], Any] = found
        if isinstance(found, type):
            try:
                made = found()
            except Exception as error:
                raise ConfigError(f"{self.what} cannot be made without arguments: {told(error)}") from error
            if not callable(made):
                raise ConfigError(f"{self.what}: what its class makes must be callable; give it a method __call__")
            self._select = made

    def __call__(self, request: SelectionRequest) -> Choice:
        """Return the user's choice, or what the budget pays for of the channels it finds worth most.

        Raises:
            ConfigError: It is neither a `Choice` nor one finite number per channel, or does not fit the encoder.
            BudgetError: It costs more than the budget.
        """
        answer = self._select(request)
        if isinstance(answer, Tensor):
            ranking = self._worth(answer, request.costs.layout.num_channels).argsort(descending=True, stable=True)
            return Choice(project_ranking(ranking, request.costs, request.budget))
        if not isinstance(answer, Choice):
            raise ConfigError(
                f"{self.what} must return a Choice, or a tensor with the worth of each channel "
                f"[{request.costs.layout.num_channels}], got {type(answer).__name__}"
            )
        self._check(answer, request)
        return answer

    def _worth(self, worth: Tensor, num_channels: int) -> Tensor:
        if worth.shape != (num_channels,) or worth.is_complex() or not bool(worth.isfinite().all()):
            found = "one with NaN or infinity" if worth.shape == (num_channels,) else f"{list(worth.shape)}"
            raise ConfigError(
                f"{self.what}: a tensor must hold one finite number per channel [{num_channels}], got {found}"
            )
        return worth.detach().cpu()

    def _check(self, choice: Choice, request: SelectionRequest) -> None:
        layout, budget = request.costs.layout, request.budget
        mask = choice.selection.mask if isinstance(choice.selection, Selection) else None
        if not isinstance(mask, Tensor) or mask.dtype != torch.bool or mask.shape != (layout.num_channels,):
            found = f"{mask.dtype} {list(mask.shape)}" if isinstance(mask, Tensor) else type(choice.selection).__name__
            raise ConfigError(f"{self.what}: a selection's mask must be bool [{layout.num_channels}], got {found}")
        if choice.selection.closed:
            raise ConfigError(f"{self.what}: a selection must not be closed; that is for one set of channels for all")
        counts = choice.selection.counts(layout)
        if not bool((counts > 0).all()):
            empty = layout.groups[int((counts == 0).nonzero()[0])]
            raise ConfigError(
                f"{self.what}: a selection must keep a channel of every group, got none of channels {empty.first} to "
                f"{empty.first + empty.size - 1}"
            )
        cost = request.costs.of(counts, budget.kind)
        if cost > budget.limit:
            raise BudgetError(
                f"{self.what} chose channels that cost {smallest_budget(cost, budget.kind)} where {budget.kind} is "
                f"{budget.limit:g}; cut them with spatl.selection.projection, or return what each is worth"
            )
        if not isinstance(choice.state, Mapping) or not all(
            isinstance(name, str) and isinstance(value, Tensor) for name, value in choice.state.items()
        ):
            raise ConfigError(f"{self.what}: a choice's state must be tensors by name, got {choice.state!r:.80}")


def rehearse_selector(
    selector: UsersSelector,
    model: nn.Module,
    weights: Tensor,
    costs: Costs,
    budget: Budget,
    data: ClientData,
    *,
    batch_size: int,
    seed: int,
) -> None:
    """Raise unless a selector answers as it must, before a run asks it in earnest.

    It is asked for the channels of an encoder whose every entry moved a little, at random.

    Args:
        selector: The selector.
        model: A copy of the network as it was built.
        weights: float32 [N], its encoder.
        costs: What its channels cost.
        budget: What a client may spend.
        data: A client's examples.
        batch_size: Examples per step of training.
        seed: The run's seed.

    Raises:
        ConfigError: It fails, answers with something else, or changes the model.
        BudgetError: What it chooses costs too much.
    """
    draws = generator(seed, "selection-rehearsal")
    update = 1e-3 * torch.randn(weights.shape, generator=draws)
    before = {name: value.detach().clone() for name, value in model.state_dict().items()}
    request = SelectionRequest(
        model=model, weights=weights + update, update=update, costs=costs, budget=budget, train=data.train,
        validation=data.validation, num_steps=1, batch_size=batch_size, server_round=1, generator=draws, state={},
    )  # fmt: skip
    try:
        with seeded_globals(seed, "layers"):
            selector(request)
    except SpatlError:
        raise
    except Exception as error:
        raise ConfigError(f"{selector.what} failed: {told(error)}") from error
    changed = [name for name, value in model.state_dict().items() if not torch.equal(before[name], value)]
    if changed:
        raise ConfigError(f"{selector.what} must leave the model as it found it, but {changed[0]!r} has changed")


def _selects(found: object) -> bool:
    return callable(found) and not isinstance(found, nn.Module)
