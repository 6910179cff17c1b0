"""What is traced once: networks of the project's own with the same weights, and no other."""

import pytest
import torch

import spatl.rounds.remembered_traces
from spatl.channels.tracing import trace_groups
from spatl.rounds.blueprint import Blueprint, make_blueprint
from tests.support.federations import of_users, tiny_config

OWN = {"name": "cnn", "options": {"channels": [4, 6], "hidden": 13}}


@pytest.fixture
def traced(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A letter for each network that is traced from now on."""
    found: list[str] = []

    def noting(*args, **kwargs):  # type: ignore[no-untyped-def]
        found.append("x")
        return trace_groups(*args, **kwargs)

    monkeypatch.setattr(spatl.rounds.remembered_traces, "trace_groups", noting)
    return found


def assert_own(blueprint: Blueprint) -> None:
    """Compare a blueprint's trace with one that is made for it alone."""
    example = blueprint.dataset.inputs[:1]
    parameters = list(blueprint.split.encoder_parameters(blueprint.model))
    alone, trace = trace_groups(blueprint.model, example, parameters=parameters), blueprint.costs.trace
    assert trace.layout.fingerprint == alone.layout.fingerprint
    assert trace.readers.keys() == alone.readers.keys()
    assert all(torch.equal(trace.readers[name], alone.readers[name]) for name in alone.readers)
    counts = alone.layout.group_sizes
    assert trace.flops.ratio(counts // 2) == alone.flops.ratio(counts // 2)


@pytest.mark.slow
def test_rows_of_one_network_share_its_trace(traced: list[str]) -> None:
    rows = [
        {"method": "spatl"},
        {"method": "scaffold"},
        {"method": "spatl", "rounds": 9, "training": {"momentum": 0.0}},
    ]
    blueprints = [make_blueprint(tiny_config(model=OWN, **row)) for row in rows]
    assert len(traced) == 1
    assert len({id(each.costs.trace) for each in blueprints}) == 1
    for each in blueprints:
        assert_own(each)


@pytest.mark.slow
@pytest.mark.parametrize(
    "other",
    [{"seed": 4}, {"model": {"options": {"channels": [4, 6], "hidden": 14}}}, {"predictor": {"mode": "residual"}},
     {"predictor": {"mode": "local"}}, {"model": {"cut": ["hidden", "classifier"]}}],
    ids=["weights", "options", "added", "private", "cut"],
)  # fmt: skip
def test_another_network_or_another_encoder_of_it_is_traced_itself(traced: list[str], other: dict[str, object]) -> None:
    first = make_blueprint(tiny_config(model=OWN))
    before = len(traced)
    second = make_blueprint(tiny_config(**{"model": OWN, **other}))
    assert len(traced) == before + 1
    assert second.costs.trace is not first.costs.trace
    assert_own(second)


@pytest.mark.slow
def test_a_users_network_is_traced_each_time_since_its_code_may_have_changed(traced: list[str]) -> None:
    for _ in range(2):
        make_blueprint(of_users("FixedBatch"))
    assert len(traced) == 2
