"""Rounds in which clients train parts of the network: who learns what, and what keeps its bits."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from spatl.channels.costs import Budget
from spatl.channels.layout import ChannelGroup, EncoderLayout, Labels
from spatl.channels.selection import Selection
from spatl.errors import BudgetError
from spatl.rounds.aggregation import Aggregator
from spatl.rounds.client_state import ClientState
from spatl.rounds.workplace import Workplace
from spatl.runs.records import read_lines
from spatl.wire.update import Update
from tests.support.clients import received, train
from tests.support.federations import (
    blueprint_of,
    history_without_seconds,
    opened,
    run_tiny,
    tiny_config,
)

LAYOUT = EncoderLayout(
    shapes={"a.weight": torch.Size([2, 1]), "b.weight": torch.Size([2, 2])},
    num_parameter_entries=6,
    owners=(Labels(torch.tensor([0, 1])), Labels(torch.tensor([2, 3]), inner=2)),
    groups=(ChannelGroup("a", 0, 2, 1), ChannelGroup("b", 2, 2, 2)),
    readings=(Labels(torch.tensor([-1])), Labels(torch.tensor([0, 1]))),
)
"""Layer `b` reads the two channels of `a`: entry 2 + 2i + j of the vector is what output i has from channel j."""


def part(*channels: int) -> Selection:
    mask = torch.zeros(4, dtype=torch.bool)
    mask[list(channels)] = True
    return Selection(mask, closed=True)


def update(selection: Selection, *values: float, step_weight: float = 1.0) -> Update:
    assert selection.num_entries(LAYOUT) == len(values)
    return Update(1, 0, selection, torch.tensor(values), step_weight, corrected=True)


def aggregated(*updates: tuple[Update, int], total: int) -> tuple[torch.Tensor, torch.Tensor]:
    control = torch.tensor([0.1, 0.2, 0.3, 0.4, 0.5, 0.6])
    aggregator = Aggregator(
        LAYOUT, torch.arange(6.0), control, total_examples=total, damping=0.5, by_entry=True, learning_rate=1.0
    )
    for each, number in updates:
        aggregator.add(each, number)
    after = aggregator.control()
    assert after is not None
    return aggregator.encoder(), after


def test_each_entry_is_averaged_over_those_that_trained_it():
    """The first client trains all with 10 examples, the second channels 0 and 2 with 30: entries 0 (a's first) and 2
    (b's first output from a's first channel). x_0 moves by (10 * 1 + 30 * 2) / 40 = 1.75, x_2 by (10 * 3 + 30 * 1) / 40
    = 1.5. Entry 3, of channel 2 too, only the first client trained: by 4, where an average over the senders of channel
    2 would give 4 * 10 / 40 = 1.

    c_j moves by half of sum n_i (-D_ij / a_i - c_j) / 80, the second's a being 2: c_0 = 0.1 + (10 (-1 - 0.1) + 30 (-1 -
    0.1)) / 160 = 0.1 - 0.275; c_3 = 0.4 + 10 (-4 - 0.4) / 160 = 0.4 - 0.275.
    """
    everything = update(part(0, 1, 2, 3), 1.0, 2.0, 3.0, 4.0, 5.0, 6.0)
    narrow = update(part(0, 2), 2.0, 1.0, step_weight=2.0)
    encoder, control = aggregated((everything, 10), (narrow, 30), total=80)
    assert (encoder - torch.arange(6.0)).tolist() == [1.75, 2.0, 1.5, 4.0, 5.0, 6.0]
    assert control[0].item() == pytest.approx(0.1 - 0.275)
    assert control[3].item() == pytest.approx(0.4 - 0.275)


def test_what_nobody_trained_keeps_its_bits_though_both_its_channels_were_trained():
    """One client trains channels 0 and 2, the other 1 and 3: nobody b's entries from the other's channel, 3 and 4."""
    encoder, control = aggregated((update(part(0, 2), 1.0, 1.0), 10), (update(part(1, 3), 1.0, 1.0), 10), total=20)
    assert encoder.tolist() == [1.0, 2.0, 3.0, 3.0, 4.0, 6.0]
    assert torch.equal(control[[3, 4]], torch.tensor([0.4, 0.5]))


def test_what_was_added_up_as_it_came_is_counted_by_entry_too(monkeypatch):
    monkeypatch.setattr("spatl.rounds.aggregation.WAITING_BYTES", 0)
    test_each_entry_is_averaged_over_those_that_trained_it()
    test_what_nobody_trained_keeps_its_bits_though_both_its_channels_were_trained()


def config(**sections: Any):
    """Small ResNets of clients whose c_i do not fade, so that bits can be compared."""
    return tiny_config(
        model={"name": "resnet8", "options": {"width": 0.5}},
        control={"half_life": None},
        selection={"when": "before", "selector": "ordered", "flops_ratio": 0.4, **sections.pop("selection", {})},
        **sections,
    )


@pytest.mark.slow
@pytest.mark.parametrize("method", ["spatl", "spatl-paper"])
def test_a_client_learns_in_the_part_that_it_chose_and_nowhere_else(method):
    blueprint = blueprint_of(config(method=method, wire={"uplink": "float32", "downlink": "float32"}))
    layout, workplace = blueprint.layout, Workplace(blueprint)
    draws = torch.Generator().manual_seed(0)
    common, own = (1e-3 * torch.randn(layout.num_parameter_entries, generator=draws) for _ in range(2))
    state = replace(ClientState.initial(layout), control=own)
    first = received(blueprint, control=common)
    blob, after = train(workplace, 0, first, state, acknowledged_round=0)
    sent = opened(blob, layout)
    assert sent.selection.closed
    assert 0 < sent.report.flops_ratio <= 0.4
    assert float((sent.values != 0).float().mean()) > 0.9
    rest = torch.ones(layout.num_entries, dtype=torch.bool)
    rest[sent.selection.entries(layout)] = False
    assert torch.equal(after.pending_control[rest], own[rest])
    assert float((after.pending_control[~rest] != own[~rest]).float().mean()) > 0.9
    if method == "spatl-paper":  # whose predictor is the client's own; statistics are estimated anew in each round
        columns = sent.selection.mask[blueprint.costs.trace.readers["fc"]]
        moved = after.private["fc.weight"] != blueprint.model.fc.weight
        assert 0 < int(columns.sum()) < len(columns)
        assert not bool(moved[:, ~columns].any())
        assert bool(moved[:, columns].all())


@pytest.mark.slow
def test_a_client_that_trains_the_whole_network_does_as_if_it_chose_afterwards():
    blobs = []
    for when, selector in (("before", "ordered"), ("after", "all")):
        blueprint = blueprint_of(config(selection={"when": when, "selector": selector, "flops_ratio": 1.0}))
        blob, _ = train(Workplace(blueprint), 1, received(blueprint), None, acknowledged_round=0)
        blobs.append(opened(blob, blueprint.layout))
    assert torch.equal(blobs[0].values, blobs[1].values)


@pytest.mark.slow
def test_an_owners_budget_binds_and_one_that_no_part_meets_is_refused():
    blueprint = blueprint_of(config())
    workplace = Workplace(blueprint)
    blob, _ = train(
        workplace, 0, received(blueprint), None, acknowledged_round=0, budget=Budget("keep_ratio", 0.3)
    )  # fmt: skip
    sent = opened(blob, blueprint.layout)
    assert 0.1 < sent.selection.keep_ratio(blueprint.layout) <= 0.3
    with pytest.raises(BudgetError, match=r"client 0: the node's.flops_ratio is 0.0001, but the least"):
        train(workplace, 0, received(blueprint), None, acknowledged_round=0, budget=Budget("flops_ratio", 1e-4))


@pytest.mark.slow
@pytest.mark.parametrize("selector", ["agent", "rolling"])
def test_fleets_of_different_devices_run_and_repeat(selector: str, tmp_path: Path) -> None:
    clients = {0: {"flops_ratio": 0.25}, 1: {"flops_ratio": 0.5}}
    fleet = config(rounds=2, selection={"selector": selector, "flops_ratio": 1.0, "clients": clients})
    for name in ("one", "other"):
        run_tiny(fleet, tmp_path / name)
    assert history_without_seconds(tmp_path / "one") == history_without_seconds(tmp_path / "other")
    trained = [row for row in read_lines(tmp_path / "one" / "clients.jsonl") if row.get("flops_ratio") is not None]
    for row in trained:
        limit = clients.get(row["client"], {"flops_ratio": 1.0})["flops_ratio"]
        assert limit / 2 < row["flops_ratio"] <= limit
    assert {row["client"] for row in trained} == set(range(5))


@pytest.mark.slow
def test_where_weak_devices_are_left_out_only_able_ones_train(tmp_path: Path) -> None:
    clients = {0: {"flops_ratio": 0.25}, 3: {"keep_ratio": 0.5}}
    run_tiny(tiny_config(rounds=2, selection={"selector": "able", "flops_ratio": 1.0, "clients": clients}), tmp_path)
    trained = {row["client"] for row in read_lines(tmp_path / "clients.jsonl") if row.get("flops_ratio") is not None}
    assert trained == {1, 2, 4}
