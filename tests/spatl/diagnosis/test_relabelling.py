"""Of which classes the examples look that labels call one class, by numbers worked out by hand."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from spatl.diagnosis.relabelling import Mixture, mixtures, onto_simplex
from spatl.saliency.findings import Findings
from tests.support.findings import drawn_findings, findings_on


def four_of_each(features: tuple[float, float]) -> Findings:
    """Four examples of either class, each with the feature of its class."""
    labels = torch.tensor([0, 1] * 4)
    ones = torch.ones(8)
    return findings_on(labels, ones[:, None], ones, torch.tensor(features)[labels][:, None], ones > 0, 2)


def test_a_share_is_how_far_features_have_gone_to_another_class_less_what_sampling_may_do():
    """Classes are at 1 and 11; on client 0 label 0 is at 5, two fifths of the way.

    To the others p_0 is (3 * 1 + 5) / 4 = 2, a distance of 1, times the root of 4 examples; the median over the clients
    is 2, the error of one example. That of a mean of four is 1, and twice that is taken for sampling: 2 of the 10 from
    class to class, a fifth. What is left is a fifth, of 4 of 8 examples.
    """
    clients = {0: four_of_each((5.0, 11.0)), **{client: four_of_each((1.0, 11.0)) for client in range(1, 5)}}
    found = mixtures(clients)
    assert found[0].shares.flatten().tolist() == pytest.approx([0.8, 0.2, 0.0, 1.0], abs=1e-6)
    assert found[0].mislabelled == pytest.approx(0.1)
    assert found[0].largest == (0, 1, pytest.approx(1.0))
    assert found[0].counts_of(0, 1) == pytest.approx(0.8)
    assert all(found[client].mislabelled == pytest.approx(0.0) for client in range(1, 5))


def test_the_largest_pair_is_that_of_most_examples():
    """Of label 0 three of 10 look like class 2, of label 1 four of 20 like class 0: four of seven are the latter."""
    shares = torch.tensor([[0.7, 0.0, 0.3], [0.2, 0.8, 0.0], [0.0, 0.0, 1.0]], dtype=torch.float64)
    mixture = Mixture(shares, torch.tensor([10, 20, 5]))
    assert mixture.largest == (1, 0, pytest.approx(4 / 7))
    assert mixture.mislabelled == pytest.approx(7 / 35)


def test_where_nothing_is_known_of_features_labels_are_taken_at_their_word():
    """A network without a linear layer, and clients that keep all prototypes to themselves."""
    featureless = {client: drawn_findings(client, num_features=0) for client in range(5)}
    silent = {client: drawn_findings(client).without_small_classes(1000) for client in range(5)}
    for clients in (featureless, silent):
        assert {each.mislabelled for each in mixtures(clients).values()} == {0.0}


@pytest.mark.slow
@given(st.integers(0, 1000))
def test_shares_of_each_label_add_up_to_one_and_none_is_below_zero(seed):
    clients = {client: drawn_findings(seed + client, num_classes=4, num_features=6) for client in range(6)}
    for each in mixtures(clients).values():
        assert float(each.shares.min()) >= 0
        assert each.shares.sum(1).tolist() == pytest.approx([1.0] * 4)
        assert 0 <= each.mislabelled <= 1


@given(st.integers(0, 1000))
def test_the_nearest_point_of_the_simplex_is_nearer_than_any_other(seed):
    rng = torch.Generator().manual_seed(seed)
    rows = torch.randn(3, 5, generator=rng, dtype=torch.float64) * 3
    found = onto_simplex(rows)
    others = torch.rand(100, 3, 5, generator=rng, dtype=torch.float64)
    others /= others.sum(2, keepdim=True)
    assert float(found.min()) >= 0
    assert found.sum(1).tolist() == pytest.approx([1.0] * 3)
    assert bool(((rows - found).norm(dim=1) <= (rows - others).norm(dim=2) + 1e-9).all())
    assert torch.allclose(onto_simplex(found), found)
