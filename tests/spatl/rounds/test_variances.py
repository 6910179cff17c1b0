"""Running variances that travel as differences never fall below zero, whatever rounds, weighs or scales them."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from spatl.channels.layout import ChannelGroup, EncoderLayout, Labels
from spatl.rounds.admission import Size, clip_update
from spatl.rounds.aggregation import Aggregator, PrivateAggregator
from spatl.rounds.downlink import Reference
from spatl.rounds.following import Held, follow
from spatl.rounds.rules import AGGREGATION_RULES
from spatl.wire.codecs import CODECS
from spatl.wire.download import pack_download, unpack_download
from spatl.wire.update import pack_update, unpack_update
from tests.support.layouts import make_update

SIZE, CLIENTS, ROUNDS = 8, 3, 3
SHAPES = {
    "conv.weight": torch.Size([SIZE, 4]), "norm.weight": torch.Size([SIZE]),
    "norm.running_mean": torch.Size([SIZE]), "norm.running_var": torch.Size([SIZE]),
}  # fmt: skip
LAYOUT = EncoderLayout(
    SHAPES,
    5 * SIZE,
    (Labels(torch.arange(SIZE), 4), *3 * [Labels(torch.arange(SIZE))]),
    (ChannelGroup("conv", 0, SIZE, 7),),
)
(VARIANCES,) = LAYOUT.variances


def aggregator(rule: str, encoder: torch.Tensor, learning_rate: float) -> Aggregator:
    common = {
        "layout": LAYOUT, "encoder": encoder, "control": None,
        "total_examples": 10 * CLIENTS, "learning_rate": learning_rate,
    }  # fmt: skip
    if rule == "private":
        noise = np.random.default_rng(1)
        return PrivateAggregator(clip=0.5, noise_multiplier=1.0, num_expected=CLIENTS, noise=noise, **common)
    return AGGREGATION_RULES[rule].make(trim_fraction=0.2, **common)


def test_variances_are_found_by_the_name_of_the_statistic_and_no_parameter_is_one():
    assert slice(6 * SIZE, 7 * SIZE) == VARIANCES
    assert replace(LAYOUT, num_parameter_entries=7 * SIZE).variances == ()


@pytest.mark.slow
@settings(max_examples=10)
@given(
    uplink=st.sampled_from(list(CODECS)),
    seed=st.integers(0, 2**32),
    rule=st.sampled_from(["mean", "median", "trimmed-mean", "private"]),
    learning_rate=st.sampled_from([0.5, 1.0, 3.0]),
    clip=st.sampled_from([None, 0.1]),
)
@pytest.mark.parametrize("downlink", CODECS)
def test_variances_stay_at_zero_or_above_on_the_server_and_as_clients_hold_them(
    uplink, downlink, seed, rule, learning_rate, clip
):
    """Clients whose variances are anything from 0 to 1, and fall: rounding alone may take more than there is."""
    draw = torch.Generator().manual_seed(seed)
    initial = torch.randn(LAYOUT.num_entries, generator=draw)
    initial[VARIANCES] = torch.rand(SIZE, generator=draw) ** 4
    reference = Reference(initial, LAYOUT, CODECS[downlink])
    encoder, held = reference.encoder, Held({})
    for server_round in range(1, ROUNDS + 1):
        if server_round > 1:
            reference.advance(encoder, generator=draw)
        download = reference.download(
            max(held.offsets, default=0), server_round=server_round, acknowledged_round=0, cannot_build=False
        )
        received = unpack_download(pack_download(download, LAYOUT), LAYOUT, CODECS[downlink])
        arrived, held = follow(received, held, initial, LAYOUT)
        assert torch.equal(arrived, reference.encoder)
        assert bool((arrived[VARIANCES] >= 0).all())
        average = aggregator(rule, encoder, learning_rate)
        for _ in range(CLIENTS):
            trained = arrived + 0.1 * torch.randn(LAYOUT.num_entries, generator=draw)
            trained[VARIANCES] = arrived[VARIANCES] * torch.rand(SIZE, generator=draw) ** 3
            mask = torch.rand(SIZE, generator=draw) < 0.7
            update = make_update(LAYOUT, mask.tolist(), trained - arrived)
            update = replace(update, server_round=server_round, base_version=reference.version)
            blob = pack_update(update, LAYOUT, CODECS[uplink], generator=draw)
            seen = unpack_update(
                blob, LAYOUT, CODECS[uplink], server_round=server_round, base_version=reference.version
            )
            average.add(clip_update(seen, Size(1.0, 1.0), Size(1.0, 1.0), clip), 10)
        encoder = average.encoder()
        assert bool((encoder[VARIANCES] >= 0).all())


def test_a_variance_that_would_fall_below_zero_is_halved_and_what_nobody_sent_stays():
    """1 - 1.25 would be -0.25; 1 - 0.25 is 0.75."""
    encoder = torch.ones(LAYOUT.num_entries)
    change = torch.zeros(LAYOUT.num_entries)
    change[VARIANCES.start : VARIANCES.start + 2] = torch.tensor([-1.25, -0.25])
    average = aggregator("mean", encoder, 1.0)
    average.add(make_update(LAYOUT, [True, True, *(SIZE - 2) * [False]], change), 1)
    assert average.encoder()[VARIANCES].tolist() == [0.5, 0.75, *(SIZE - 2) * [1.0]]
    assert torch.equal(encoder, torch.ones(LAYOUT.num_entries))


def test_a_variance_that_the_downlink_cannot_follow_yet_stays_and_arrives_later():
    """One weight moves by far, so that the step is 4: the fall from 1 to 0.25 rounds to none, or to one too many."""
    initial = torch.zeros(LAYOUT.num_entries)
    initial[VARIANCES] = 1.0
    target = initial.clone()
    target[VARIANCES] = 0.25
    reference = Reference(initial, LAYOUT, CODECS["ternary"])
    draw = torch.Generator().manual_seed(1)
    for _ in range(40):
        reference, _ = reference.advance(target, generator=draw)
        assert bool((reference.encoder[VARIANCES] >= 0).all())
    assert reference.encoder[VARIANCES].tolist() == pytest.approx(SIZE * [0.25], abs=0.01)
