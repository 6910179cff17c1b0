"""Part of the network that a client trains in place of the whole: chosen at the start of a round, cut out, put back.

What was not trained keeps its bits: in the client's model, in what it sends, and, since the server averages each entry
over those that sent it, in x; a client's control variate moves on what was sent alone.
"""

import torch

from spatl.channels.selection import select_all
from spatl.channels.subnetworks import SubNetwork
from spatl.rounds.workplace import ClientRound
from spatl.selection.before import choose_part
from spatl.selection.protocol import Choice, SelectionRequest
from spatl.training.step_weight import num_steps


def chosen_part(own: ClientRound) -> Choice | None:
    """Return what a client chooses to train in this round, under its budget; None where it trains the whole network."""
    config, blueprint, budget = own.blueprint.config, own.blueprint, own.budget
    if not config.trains_parts or budget is None:
        return None
    if budget.kind != "uplink_bytes" and budget.limit >= 1 and not own.workplace.narrows:
        return Choice(select_all(blueprint.layout, closed=True))
    request = SelectionRequest(
        model=own.model,
        weights=own.received.start(),
        update=torch.zeros(1).expand(blueprint.layout.num_entries),  # in no memory
        costs=blueprint.costs,
        budget=budget,
        train=own.data.train,
        validation=own.data.validation,
        num_steps=num_steps(own.training, len(own.data.train)),
        batch_size=own.training.batch_size,
        server_round=own.received.server_round,
        generator=own.generator("selection"),
        state=own.state.selector,
        task=blueprint.task,
    )
    return choose_part(own.workplace.selector, request, blueprint.subnetworks.prunable)


def cut_part(own: ClientRound, part: Choice | None) -> SubNetwork | None:
    """Return the part as a network of its own, with what the client's model holds; None where it is the whole one."""
    if part is None or bool(part.selection.mask.all()):
        return None
    return own.blueprint.subnetworks.cut(own.model, part.selection)
