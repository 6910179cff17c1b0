"""On a client: never below the prior on the validation split, within the budget, and the same again with the seed."""

import subprocess
import sys

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from agents.effort import Effort
from agents.measurement import Outcome, pruned_trial, sent_trial
from agents.policy import save_policy
from agents.selection_problem import Problem
from agents.selector import AgentSelector, choose, personal, propose
from spatl.channels.costs import Budget
from spatl.config.selection import AgentConfig
from spatl.data import Examples
from spatl.errors import SpatlError
from spatl.selection.energy import drawn_energy
from spatl.selection.protocol import SelectionRequest
from spatl.selection.signal import channel_signal
from tests.support.problems import blueprint_for, candidate_for, drawn_policy

BLUEPRINT = blueprint_for("resnet8")


@pytest.fixture(scope="module")
def policy_file(tmp_path_factory):
    """A policy that knows nothing and says so loudly."""
    path = tmp_path_factory.mktemp("policy") / "policy.safetensors"
    save_policy(drawn_policy(2), path)
    return str(path)


def settings_with(**changes):
    values = {
        "reward": "sent",
        "samples": 4,
        "tuning": "search",
        "tuning_rounds": None,
        "max_share": 1.0,
        "policy": None,
    }
    return AgentConfig(**{**values, **changes})


def request_with(*, budget=None, seed=0, num_validation=40, state=None, server_round=1, num_steps=40):
    made = candidate_for("resnet8")
    validation = made.data.validation
    validation = Examples(validation.inputs[:num_validation], validation.targets[:num_validation])
    return SelectionRequest(
        model=made.model,
        weights=made.weights,
        update=made.update,
        costs=BLUEPRINT.costs,
        budget=budget or Budget("keep_ratio", 0.3),
        train=made.data.train,
        validation=validation,
        num_steps=num_steps,
        batch_size=32,
        server_round=server_round,
        generator=torch.Generator().manual_seed(seed),
        state=state or {},
    )


def measured(request, reward, selection):
    """Accuracy of a selection and of the prior, on the validation split, by trials of the test's own."""
    if reward == "sent":
        trial = sent_trial(
            request.model, BLUEPRINT.layout, trained=request.weights, update=request.update,
            examples=request.validation,
        )  # fmt: skip
        draws = torch.Generator().manual_seed(request.generator.initial_seed())
        worth = drawn_energy(request.update, BLUEPRINT.layout, draws)
    else:
        trial = pruned_trial(request.model, BLUEPRINT.costs.trace, request.validation)
        images = request.train.inputs
        worth = channel_signal(request.model, BLUEPRINT.layout, BLUEPRINT.costs.trace.readers, images)
    prior = Problem(request.costs, request.budget, worth, reward).prior()
    return trial(selection).accuracy, trial(prior).accuracy


@pytest.mark.slow
@pytest.mark.parametrize("reward", ["sent", "pruned"])
@pytest.mark.parametrize("tuning", ["search", "ppo"])
@pytest.mark.parametrize("samples", [0, 5])
def test_whatever_the_policy_says_the_prior_is_the_floor(policy_file, reward, tuning, samples):
    select = AgentSelector(settings_with(reward=reward, tuning=tuning, samples=samples, policy=policy_file))
    for seed in range(3):
        request = request_with(seed=seed)
        choice = select(request)
        accuracy, floor = measured(request, reward, choice.selection)
        assert accuracy >= floor
        assert choice.gain == pytest.approx(accuracy - floor)


@pytest.mark.slow
@given(
    budget=st.one_of(
        st.builds(Budget, st.just("keep_ratio"), st.floats(0.05, 1.0)),
        st.builds(Budget, st.just("flops_ratio"), st.floats(0.05, 1.0)),
        st.builds(Budget, st.just("uplink_bytes"), st.integers(20_000, 320_000).map(float)),
    )
)
def test_the_budget_is_met_in_any_unit(policy_file, budget):
    choice = AgentSelector(settings_with(samples=1, policy=policy_file))(request_with(budget=budget))
    counts = choice.selection.counts(BLUEPRINT.layout)
    assert BLUEPRINT.costs.of(counts, budget.kind) <= budget.limit
    assert bool((counts >= 1).all())


@pytest.mark.slow
def test_the_same_seed_selects_the_same(policy_file):
    select = AgentSelector(settings_with(policy=policy_file, reward="pruned"))
    first, again = select(request_with(seed=1)), select(request_with(seed=1))
    assert torch.equal(first.selection.mask, again.selection.mask)
    assert all(torch.equal(first.state[name], again.state[name]) for name in first.state)


@pytest.mark.slow
def test_the_head_stays_with_the_client_and_is_used_again(policy_file):
    select = AgentSelector(settings_with(policy=policy_file, tuning="ppo", samples=8))
    state = select(request_with()).state
    assert set(state) == {"weight", "bias", "policy"}
    alone = AgentSelector(settings_with(policy=policy_file, samples=0))
    kept = alone(request_with(state=state)).state
    assert all(torch.equal(kept[name], state[name]) for name in state)


@pytest.mark.slow
@pytest.mark.parametrize("damage", ["other policy", "shape", "nan", "no policy"])
def test_a_head_that_does_not_belong_to_the_policy_is_dropped_and_said_so(policy_file, caplog, damage):
    select = AgentSelector(settings_with(policy=policy_file, tuning="ppo", samples=4))
    state = dict(select(request_with()).state)
    if damage == "other policy":
        select = AgentSelector(settings_with(samples=4))
    elif damage == "shape":
        state["weight"] = state["weight"][:, :3]
    elif damage == "nan":
        state["bias"] = state["bias"] * float("nan")
    else:
        del state["policy"]
    fresh, choice = select(request_with(seed=1)), select(request_with(seed=1, state=state))
    assert torch.equal(fresh.selection.mask, choice.selection.mask)
    assert "does not belong to this policy" in caplog.text


def test_two_examples_that_agree_by_chance_choose_nothing():
    """A difference counts for what it exceeds its standard error by: here 0.5 - 0.5, 0.25 - 0.25 and 1 - 0."""
    prior = Outcome(0.0, 1.0, torch.zeros(4, dtype=torch.float64))
    assert Outcome(0.5, 1.0, torch.tensor([1.0, 0.0], dtype=torch.float64)).advantage(
        Outcome(0.0, 1.0, torch.zeros(2, dtype=torch.float64))
    ) == pytest.approx(0.0)
    assert Outcome(0.25, 1.0, torch.tensor([1.0, 0, 0, 0], dtype=torch.float64)).advantage(prior) == pytest.approx(0.0)
    assert Outcome(1.0, 1.0, torch.ones(4, dtype=torch.float64)).advantage(prior) == 1.0
    assert prior.advantage(prior) == 0.0
    assert Outcome(0.0, 9.0, torch.full((4,), float("nan"), dtype=torch.float64)).advantage(prior) == -float("inf")


def test_a_policy_that_was_rejected_is_not_where_the_client_goes_on():
    """The policy is worse than the prior on this trial: the head that stays behind acts closer to the prior."""
    problem = Problem(BLUEPRINT.costs, Budget("keep_ratio", 0.3), candidate_for("resnet8").signal, "pruned")
    prior = problem.prior().mask
    policy = drawn_policy(4, scale=0.15)

    def trial(selection):
        score = 1 - float((selection.mask != prior).double().mean())
        return Outcome(score, 1 - score, torch.full((4,), score, dtype=torch.float64))

    proposal = propose(problem, policy)
    assert not torch.equal(proposal.chosen.mask, prior)
    draws = torch.Generator().manual_seed(0)
    best = choose(proposal, trial, samples=4, tuning="search", generator=draws)
    assert torch.equal(best.selection.mask, prior)
    assert best.gain == 0
    after = personal(policy, best.head).act(proposal.graph)
    assert after.abs().mean() < 0.5 * proposal.action.abs().mean()


def counted(monkeypatch, select, request):
    calls = []
    monkeypatch.setattr("agents.selector.sent_trial", lambda *a, **k: recording(calls, sent_trial(*a, **k)))
    select(request)
    return len(calls)


def recording(calls, trial):
    def measure(selection):
        calls.append(selection)
        return trial(selection)

    return measure


@pytest.mark.slow
def test_measuring_stays_within_its_share_of_the_training(monkeypatch, policy_file):
    """Two trials and a proposal, or none at all; each sample is a trial and what is learned from it."""
    request = request_with(num_steps=40)
    effort = Effort.of(request.model, request.costs)
    training, trial = 40 * effort.step(32), effort.trial(len(request.validation))
    least = (2 * trial + 3e-3) / training
    more = (trial + 1e-3) / training
    for share, expected in ((0.99 * least, 0), (1.01 * least, 2), (least + 1.5 * more, 3), (1.0, 6)):
        select = AgentSelector(settings_with(policy=policy_file, max_share=share))
        assert counted(monkeypatch, select, request) == expected


@pytest.mark.slow
def test_samples_are_drawn_in_the_first_rounds_only(monkeypatch, policy_file):
    select = AgentSelector(settings_with(policy=policy_file, tuning_rounds=3))
    assert [counted(monkeypatch, select, request_with(server_round=n)) for n in (1, 3, 4)] == [6, 6, 2]


@pytest.mark.slow
def test_a_client_with_too_few_examples_to_measure_takes_the_prior(policy_file):
    request = request_with(num_validation=1)
    worth = drawn_energy(request.update, BLUEPRINT.layout, torch.Generator().manual_seed(0))
    prior = Problem(request.costs, request.budget, worth, "sent").prior()
    choice = AgentSelector(settings_with(policy=policy_file))(request)
    assert torch.equal(choice.selection.mask, prior.mask)
    assert choice.gain == 0


def test_a_missing_policy_file_is_met_at_construction():
    with pytest.raises(SpatlError, match="policy file not found"):
        AgentSelector(settings_with(policy="nowhere.safetensors"))


@pytest.mark.slow
def test_selecting_needs_no_reinforcement_learning_library():
    """A client on a device has none."""
    code = (
        "import sys, clients.app, agents.selector, spatl.console.main\n"
        "heavy = {'gymnasium', 'stable_baselines3', 'matplotlib', 'ray'} & set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert result.returncode == 0, result.stderr[-500:]
