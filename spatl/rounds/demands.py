"""Demands of a run on a device, once its network is built: steps, examples, bytes, and the owner's budget."""

import math

from spatl.channels.costs import Budget, BudgetKind, smallest_budget
from spatl.channels.selection import Selection, select_all
from spatl.config.device import Limits
from spatl.errors import NotAllowed
from spatl.rounds.blueprint import Blueprint, check_client_budget
from spatl.training.step_weight import num_steps


def check_demands(blueprint: Blueprint, client: int, num_examples: int, limits: Limits) -> None:
    """Raise where a round of a client would go beyond the limits of its device.

    Args:
        blueprint: The run's.
        client: The client's partition id.
        num_examples: Its training examples.
        limits: What the owner allows.

    Raises:
        NotAllowed: It would.
    """
    if num_examples > limits.examples:
        raise NotAllowed.of("limits.examples (data)", f"{num_examples:,} training examples", f"{limits.examples:,}")
    config = blueprint.config
    training = config.training_of(client)
    whole = training.model_copy(update={"local_steps": None, "local_epochs": 1})
    an_epoch = max(1, num_steps(whole, num_examples))
    epochs = config.training.head_epochs if config.row.head_first else 0
    models = 2 if config.row.personal else 1
    steps = models * num_steps(training, num_examples) + epochs * an_epoch
    tuning = config.training.finetune_epochs * an_epoch if config.row.fine_tunes else 0
    for setting, asked in (("training", steps), ("training.finetune_epochs", tuning)):
        if asked > limits.steps:
            raise NotAllowed.of(f"limits.steps ({setting})", f"{asked:,} steps a round", f"{limits.steps:,}")
    megabytes = {
        "upload_megabytes": _upload(blueprint, client) / 1e6,
        "download_megabytes": _download(blueprint) / 1e6,
    }
    for name, number in megabytes.items():
        most: float = getattr(limits, name)
        if number > most:
            raise NotAllowed.of(f"limits.{name} (model, wire)", f"up to {number:.4g} a round", f"{most:g}")


def check_enough(num_examples: int, least: int, split: str) -> None:
    """Raise where what is said of a split as a whole would be said of too few examples.

    Args:
        num_examples: Of the split.
        least: What the owner allows.
        split: Its name.

    Raises:
        NotAllowed: They are too few.
    """
    if num_examples < least:
        setting = "leaves.least_examples (data.validation_fraction, data.test_fraction)"
        raise NotAllowed.of(setting, f"numbers of {num_examples} {split} examples", f"those of {least} or more")


def check_binding(blueprint: Blueprint, client: int, budget: Budget, *, source: str) -> None:
    """Raise unless every update of a client will keep the budget of its owner, whatever selects its channels.

    Args:
        blueprint: The run's.
        client: The client's partition id.
        budget: The owner's.
        source: Where the owner has set it, for messages: `budget`.

    Raises:
        NotAllowed: The run sends more: it does not choose channels, or chooses others than the owner pays for.
        BudgetError: No selection meets the budget.
    """
    config, layout = blueprint.config, blueprint.layout
    if not layout.num_entries:
        return
    if config.chooses_channels and layout.groups:
        check_client_budget(blueprint, budget, source=f"client {client}: the node's")
        return
    agreed = config.budget()
    if config.row.static_mask and layout.groups and agreed.kind == budget.kind and agreed.limit <= budget.limit:
        return
    cost = cost_of(blueprint, select_all(layout), budget.kind)
    if cost > budget.limit:
        raise _over(budget, cost, source, "method" if not config.row.selects else "selection.selector")


def check_kept(blueprint: Blueprint, selection: Selection, budget: Budget, *, source: str) -> None:
    """Raise unless channels that the server has chosen are within the budget of a device's owner.

    Raises:
        NotAllowed: They are not.
    """
    cost = cost_of(blueprint, selection, budget.kind)
    if cost > budget.limit:
        raise _over(budget, cost, source, "method")


def check_chosen(blueprint: Blueprint, client: int, own: Budget | None) -> None:
    """Raise where the budget that a client goes by pays for the whole encoder, or there is nothing to choose.

    Args:
        blueprint: The run's.
        client: The client's partition id.
        own: The budget of the device's owner, if any.

    Raises:
        NotAllowed: That is so.
    """
    config, layout = blueprint.config, blueprint.layout
    if not layout.num_entries:
        return
    budget = (own or config.budget(client)) if config.chooses_channels else config.budget()
    if not layout.groups or cost_of(blueprint, select_all(layout), budget.kind) <= budget.limit:
        raise NotAllowed.of(f"leaves.whole_updates (selection.{budget.kind})", "updates of the whole encoder",
                            "chosen channels")  # fmt: skip


def check_mask(blueprint: Blueprint, selection: Selection) -> None:
    """Raise unless channels that the server has chosen for all are within the budget of the run.

    Raises:
        NotAllowed: They are not, where whole updates are to stay.
    """
    budget = blueprint.config.budget()
    cost = cost_of(blueprint, selection, budget.kind)
    if cost > budget.limit:
        asked = f"updates of {smallest_budget(cost, budget.kind)}"
        told = f"what the run said, {budget.kind} {budget.limit:g}"
        raise NotAllowed.of("leaves.whole_updates (the server's mask)", asked, told)


def cost_of(blueprint: Blueprint, selection: Selection, kind: BudgetKind) -> float:
    """Return what a selection costs, entries that belong to no channel included."""
    layout = blueprint.layout
    counts = selection.counts(layout)
    if kind == "uplink_bytes":
        return float(blueprint.costs.update_bytes(selection.num_entries(layout), int(counts.sum())))
    if kind == "keep_ratio" or not layout.groups:
        return selection.keep_ratio(layout)
    return blueprint.costs.of(counts, kind)


def _over(budget: Budget, cost: float, source: str, setting: str) -> NotAllowed:
    asked = f"updates of {smallest_budget(cost, budget.kind)}"
    return NotAllowed.of(f"{source}.{budget.kind} ({setting})", asked, f"{budget.limit:g}")


def _upload(blueprint: Blueprint, client: int) -> float:
    """Return the most bytes that an update takes."""
    config, layout, costs = blueprint.config, blueprint.layout, blueprint.costs
    if not layout.num_entries:
        return 0.0
    entries, limit = layout.num_entries, math.inf
    if config.chooses_channels and layout.groups:
        budget = config.budget(client)
        if budget.kind == "keep_ratio":
            entries = math.ceil(budget.limit * entries)
        elif budget.kind == "uplink_bytes":
            limit = budget.limit
    return min(limit, costs.update_bytes(entries, layout.num_channels))


def _download(blueprint: Blueprint) -> float:
    """Return the bytes of an encoder sent whole, and of control variates where they travel."""
    config = blueprint.config
    parts = 2 if config.row.controls and config.control.downlink == "sent" else 1
    return 4.0 * blueprint.layout.num_entries * parts
