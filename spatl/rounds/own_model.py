"""A whole model that a client keeps between rounds: Ditto's private one, and MOON's of the round before.

It never leaves the client. Whether a reply of its arrives changes nothing about it: it is the client's from the moment
at which the state is on disk.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from spatl.channels.vectors import all_finite
from spatl.errors import DivergedError
from spatl.models.copies import check_parts, duplicate, restore_
from spatl.models.split import everything_private
from spatl.rounds.blueprint import load_encoder_
from spatl.rounds.workplace import ClientRound
from spatl.training.contrast import Contrast
from spatl.training.hooks import proximal_hook
from spatl.training.local import train_


def whole_state(model: nn.Module) -> dict[str, Tensor]:
    """Return a copy of all of a model as it stands, by its names, on the CPU."""
    state = everything_private(model).private_state(model, statistics=True)
    return {name: tensor.cpu() for name, tensor in state.items()}


@contextmanager
def put_back(own: ClientRound) -> Iterator[None]:
    """Put the model instance back to what it is now, whatever is done with it meanwhile."""
    untouched = duplicate(own.model)
    yield
    restore_(own.model, untouched)


def load_own_model_(own: ClientRound) -> None:
    """Load the client's own model into the instance: the server's as it arrived, where it has none yet."""
    if own.state.own_model:
        _load_(own.model, own.state.own_model)
        return
    blueprint = own.blueprint
    restore_(own.model, blueprint.model)
    load_encoder_(own.model, blueprint.layout, own.received.start())
    if own.state.private:
        blueprint.split.load_private_state_(own.model, own.state.private)


def trained_own_model(own: ClientRound) -> dict[str, Tensor]:
    """Return the client's own model after its round (Ditto: Li et al. 2021, arXiv 2012.04221, algorithm 1).

    It takes as many steps as the round's training, on batches of its own:
    v <- v - eta (grad F(v) + lambda (v - x)), with x as it arrived. Buffers are its own.

    Raises:
        DivergedError: It left the finite numbers.
        ModelError: The model changed its parts in training.
    """
    settings, layout = own.training, own.blueprint.layout
    views = layout.unflatten(own.received.start())
    names = own.blueprint.split.encoder_parameters(own.model)
    pull = proximal_hook({name: views[name] for name in names}, settings.personal_pull)
    order = own.generator("own-model")
    with put_back(own):
        load_own_model_(own)
        train_(
            own.model, own.trainable(), own.data.train, settings, generator=order, hooks=[pull], task=own.blueprint.task
        )
        check_parts(own.model, own.blueprint.model)
        found = whole_state(own.model)
        finite = all(map(all_finite, own.model.parameters()))
    if not finite:
        raise DivergedError(
            f"client {own.client}: its own model diverged in round {own.received.server_round}: lower "
            "training.learning_rate or training.personal_pull"
        )
    return found


def contrast_of(own: ClientRound) -> Contrast | None:
    """Return MOON's loss for a round; None before a client has trained, where it would be the same for any weights."""
    settings = own.training
    if not own.blueprint.config.row.contrasts or not own.state.own_model:
        return None
    server, before = duplicate(own.model), duplicate(own.model)
    _load_(before, own.state.own_model)
    return Contrast(
        own.model, server, before, own.blueprint.built_cut, weight=settings.contrast_weight,
        temperature=settings.contrast_temperature,
    )  # fmt: skip


def _load_(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    with torch.no_grad():
        everything_private(model).load_private_state_(model, state)
