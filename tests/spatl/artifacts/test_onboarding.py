"""A newcomer's start with a federation's model: what is its own, what is trained, and what is taken."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from spatl.artifacts import onboarding
from spatl.artifacts.description import ModelDescription, Offset
from spatl.artifacts.model_files import RunModel, network_of, read_model, write_model
from spatl.artifacts.onboarding import (
    FINE_TUNED,
    FROM_SCRATCH,
    NEW_HEAD,
    OWN_STATISTICS,
    TRAINS_NOTHING,
    Onboarding,
    federations_model,
    onboard,
    wins,
    write_onboarding,
)
from spatl.config.training import TrainingConfig
from spatl.data import ClientData, Examples
from spatl.errors import SpatlError
from spatl.models.weights import state_of

RATE = TrainingConfig(learning_rate=5.0, batch_size=8)  # of which fine-tuning takes a small share


def examples(number: int, seed: int, *, flipped: bool = False) -> Examples:
    """Dark images of class 0 and bright ones of class 1, or the other way round."""
    draw = torch.Generator().manual_seed(seed)
    labels = torch.randint(2, (number,), generator=draw)
    images = torch.randn(number, 1, 4, 4, generator=draw) + 2.0 * labels[:, None, None, None] - 1.0
    return Examples(images, 1 - labels if flipped else labels)


def splits(number: int = 60, *, flipped: bool = False) -> ClientData:
    """So many training examples, perhaps of wrong labels, and 40 each to look at."""
    return ClientData(examples(number, 1, flipped=flipped), examples(40, 2), examples(40, 3))


def untrained(factory: str = "PlainNet", **changes: Any) -> RunModel:
    """A federation's model that knows nothing, of a network with a BatchNorm and the predictor `head`."""
    description = ModelDescription(
        factory=f"tests.support.users_nets:{factory}", options={}, seed=1, cut=("head",), residual=False,
        predictor="calibrated", class_names=("dark", "bright"), input_shape=(1, 4, 4), normalisation=None,
        offset=Offset(1.0, 1.0), statistics="aggregated", lacks=(), method="spatl", data="npz", round=3, client=None,
        accuracy=0.5, versions={}, encoder="",
    )  # fmt: skip
    description = description.named(**changes)
    return RunModel(network_of(description).eval(), description)


@pytest.fixture(scope="module")
def trained() -> RunModel:
    """A federation's model that tells dark from bright."""
    outcome = onboard(untrained(), splits(200), RATE, seed=1, finetune=True)
    assert outcome.taken == FINE_TUNED
    return replace(outcome.model, offset=None)


def names(outcome: Onboarding) -> list[str]:
    return [row.name for row in outcome.rows]


def changed(model: RunModel, outcome: Onboarding) -> set[str]:
    """The names of the tensors that are others than the federation's."""
    before, now = state_of(model.network), state_of(outcome.model.network)
    return {name for name in before if not torch.equal(before[name], now[name])}


def test_by_default_all_tensors_are_the_federations_and_the_offset_is_counted() -> None:
    """Of four training examples three are of class 0: with s = 1, b = log(2 * 4 / 6) and log(2 * 2 / 6)."""
    model = untrained()
    train = Examples(torch.zeros(4, 1, 4, 4), torch.tensor([0, 0, 1, 0]))
    outcome = onboard(model, replace(splits(), train=train), RATE, seed=1)
    assert names(outcome) == [TRAINS_NOTHING, OWN_STATISTICS]
    assert outcome.taken == TRAINS_NOTHING
    assert changed(model, outcome) == set()
    assert outcome.counts == {"dark": 3, "bright": 1}
    torch.testing.assert_close(outcome.model.offset, torch.tensor([math.log(8 / 6), math.log(4 / 6)]))


def test_a_federation_without_an_offset_gives_none() -> None:
    assert onboard(untrained(offset=None), splits(), RATE, seed=1).model.offset is None


def test_where_no_statistics_were_put_together_they_are_the_newcomers_own() -> None:
    model = untrained(statistics="client", lacks=("norm.running_mean", "norm.running_var"))
    outcome = onboard(model, splits(), RATE, seed=1)
    assert outcome.taken == TRAINS_NOTHING
    assert {"norm.running_mean", "norm.running_var"} <= changed(model, outcome)
    assert outcome.model.description.statistics == "client"
    assert outcome.rows[0].accuracy == outcome.rows[1].accuracy


@pytest.mark.slow
def test_what_is_given_stays_as_it_was() -> None:
    model = untrained()
    before = {name: tensor.clone() for name, tensor in state_of(model.network).items()}
    outcome = onboard(model, splits(), RATE, seed=1, finetune=True, compare=True)
    assert names(outcome) == [TRAINS_NOTHING, OWN_STATISTICS, FINE_TUNED, NEW_HEAD, FROM_SCRATCH]
    assert all(torch.equal(before[name], tensor) for name, tensor in state_of(model.network).items())
    assert not any(module.training for module in model.network.modules())


@pytest.mark.slow
def test_fine_tuning_is_taken_where_it_wins_and_keeps_the_federations_statistics() -> None:
    model = untrained()
    outcome = onboard(model, splits(), RATE, seed=1, finetune=True)
    rows = {row.name: row for row in outcome.rows}
    assert outcome.taken == FINE_TUNED
    assert rows[FINE_TUNED].validation > rows[TRAINS_NOTHING].validation
    assert {"conv.weight", "head.weight"} <= changed(model, outcome)
    assert not {"norm.running_mean", "norm.running_var", "norm.num_batches_tracked"} & changed(model, outcome)
    assert outcome.model.description.statistics == "aggregated"


@pytest.mark.slow
def test_fine_tuning_that_loses_is_measured_and_not_taken(trained: RunModel) -> None:
    outcome = onboard(trained, splits(flipped=True), RATE, seed=1, finetune=True)
    rows = {row.name: row for row in outcome.rows}
    assert rows[FINE_TUNED].validation < rows[TRAINS_NOTHING].validation
    assert outcome.taken == TRAINS_NOTHING
    assert changed(trained, outcome) == set()


@pytest.mark.slow
def test_what_a_user_froze_is_not_tuned() -> None:
    model = untrained("norm_without_gradients")
    outcome = onboard(model, splits(200), RATE, seed=1, finetune=True)
    assert outcome.taken == FINE_TUNED
    assert not {name for name in changed(model, outcome) if name.startswith("norm.")}


@pytest.mark.slow
def test_a_new_head_leaves_the_encoder_alone_and_is_all_there_is_of_a_private_predictor() -> None:
    model = untrained(predictor="local", offset=None, lacks=("head.weight", "head.bias"))
    outcome = onboard(model, splits(200), TrainingConfig(learning_rate=0.5), seed=1, finetune=True)
    assert names(outcome) == [NEW_HEAD]
    assert changed(model, outcome) == {"head.weight", "head.bias"}
    assert outcome.rows[0].accuracy > 0.7  # of which half is a guess
    assert outcome.model.offset is None


@pytest.mark.slow
def test_the_same_seed_gives_the_same_outcome() -> None:
    one, other = (onboard(untrained(), splits(), RATE, seed=7, finetune=True, compare=True) for _ in range(2))
    assert one.rows == other.rows
    assert all(
        torch.equal(tensor, state_of(other.model.network)[name]) for name, tensor in state_of(one.model.network).items()
    )


def test_the_standard_error_is_that_of_one_right_and_one_wrong_more() -> None:
    """Both of two right: (3 / 4) (1 / 4) / 2 is the variance of the share."""
    test = Examples(torch.zeros(2, 1, 4, 4), torch.zeros(2, dtype=torch.int64))
    train = Examples(torch.zeros(50, 1, 4, 4), torch.zeros(50, dtype=torch.int64))
    row = onboard(untrained(), ClientData(train, test, test), RATE, seed=1).rows[0]
    assert row.accuracy == 1.0
    assert row.standard_error == pytest.approx(math.sqrt(3 / 32))


@pytest.mark.parametrize(
    ("won", "lost", "expected"),
    [(0, 0, False), (1, 0, False), (2, 0, True), (3, 1, False), (4, 1, True), (1, 4, False)],
)
def test_a_gain_must_be_more_than_its_standard_error(won: int, lost: int, expected: bool) -> None:
    """By numpy's paired differences: mean against std(ddof=1) / sqrt(n)."""
    found = torch.tensor([True] * won + [False] * lost + [True] * 20)
    before = torch.tensor([False] * won + [True] * lost + [True] * 20)
    assert wins(found, before) is expected
    difference = found.double() - before.double()
    error = float(difference.std()) / math.sqrt(len(difference))
    assert expected == (float(difference.mean()) > error + 1e-12)


def _written(model: RunModel, directory: Path) -> None:
    write_model(directory, model.description, state_of(model.network))


@pytest.mark.slow
def test_what_is_written_is_a_clients_model(trained: RunModel, tmp_path: Path) -> None:
    data = splits()
    _written(trained, tmp_path / "run" / "model")
    outcome = onboard(federations_model(tmp_path / "run"), data, RATE, seed=1)
    write_onboarding(tmp_path / "new", outcome, {"seed": 1}, client=5)
    read = read_model(tmp_path / "new")
    assert read.description.client == 5
    assert read.description.accuracy == outcome.rows[0].accuracy
    assert torch.equal(_offset(read), _offset(outcome.model))
    with torch.no_grad():
        correct = read.with_offset_()(data.test.inputs).argmax(1) == data.test.targets
    assert float(correct.double().mean()) == outcome.rows[0].accuracy


def _offset(model: RunModel) -> Tensor:
    assert model.offset is not None
    return model.offset


@pytest.mark.slow
def test_parts_that_the_federation_lacks_are_as_they_were_at_first(trained: RunModel, tmp_path: Path) -> None:
    tensors = {name: each for name, each in state_of(trained.network).items() if not name.startswith("head.")}
    write_model(tmp_path, trained.description.named(lacks=("head.weight", "head.bias")), tensors)
    found = state_of(federations_model(tmp_path).network)
    assert torch.equal(found["conv.weight"], tensors["conv.weight"])
    assert torch.equal(found["head.weight"], state_of(untrained().network)["head.weight"])


def test_what_holds_no_model_for_a_newcomer_is_one_line(tmp_path: Path) -> None:
    model = untrained()
    write_model(tmp_path / "alone", model.description.named(method="local"), {})
    write_model(tmp_path / "clients", model.description.named(client=3), state_of(model.network))
    for name, said in {
        "alone": "holds no weights that all clients share (method local)",
        "clients": "the model of client 3",
        "nothing": "model.json is not there",
    }.items():
        with pytest.raises(SpatlError) as caught:
            federations_model(tmp_path / name)
        assert said in str(caught.value)
        assert "\n" not in str(caught.value)


@pytest.mark.slow
def test_the_ways_are_told_as_they_are_tried() -> None:
    told: list[str] = []
    onboard(untrained(), splits(), RATE, seed=1, compare=True, progress=told.append)
    assert told == [TRAINS_NOTHING, OWN_STATISTICS, NEW_HEAD, FROM_SCRATCH]
    assert onboarding.OFFERED_FROM == 100
