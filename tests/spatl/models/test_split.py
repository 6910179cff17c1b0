import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from spatl.errors import ModelError
from spatl.models import MODELS, Split, build_model, make_split
from tests.support.bits import same_states


class Tiny(nn.Module):
    """Every kind of tensor on both sides: trainable, frozen, floating and integer buffers."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 2, 3)
        self.norm = nn.BatchNorm2d(2)
        self.frozen = nn.Linear(2, 2).requires_grad_(False)
        self.head = nn.ModuleDict({"norm": nn.BatchNorm1d(2), "fc": nn.Linear(2, 3), "frozen": nn.Linear(3, 3)})
        self.head["frozen"].requires_grad_(False)
        self.head2 = nn.Linear(2, 2)


ENCODER = {"conv.weight", "conv.bias", "norm.weight", "norm.bias", "head2.weight", "head2.bias"}
PREDICTOR = {"head.norm.weight", "head.norm.bias", "head.fc.weight", "head.fc.bias"}
PRIVATE = PREDICTOR | {
    "head.frozen.weight",
    "head.frozen.bias",
    "head.norm.running_mean",
    "head.norm.running_var",
    "head.norm.num_batches_tracked",
}
STATISTICS = {"norm.running_mean", "norm.running_var"}


def scramble_(model: nn.Module) -> None:
    """Change every tensor of the model, whatever its type."""
    with torch.no_grad():
        for tensor in model.state_dict().values():
            tensor.add_(1)


def snapshot(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def test_a_cut_name_owns_itself_and_what_is_below_it_but_not_its_namesakes() -> None:
    split = Split(("head",))
    owned = [name for name in ("head", "head.fc.weight", "head2", "head2.weight", "a.head") if split.in_predictor(name)]
    assert owned == ["head", "head.fc.weight"]


def test_each_side_has_its_trainable_parameters_and_nothing_else() -> None:
    model = Tiny()
    split = make_split(model, ["head"])
    assert set(split.encoder_parameters(model)) == ENCODER
    assert set(split.predictor_parameters(model)) == PREDICTOR


def test_parameters_are_the_models_own_in_module_order() -> None:
    model = Tiny()
    parameters = make_split(model, ["head"]).encoder_parameters(model)
    assert [*parameters] == [name for name, _ in model.named_parameters() if name in ENCODER]
    assert all(parameter is model.get_parameter(name) for name, parameter in parameters.items())


@pytest.mark.slow
@given(st.sets(st.sampled_from([name for name, _ in Tiny().named_modules() if name])))
def test_any_accepted_cut_partitions_the_trainable_parameters(cut: set[str]) -> None:
    model = Tiny()
    try:
        split = make_split(model, sorted(cut))
    except ModelError:
        return
    encoder, predictor = split.encoder_parameters(model), split.predictor_parameters(model)
    assert not encoder.keys() & predictor.keys()
    assert encoder.keys() | predictor.keys() == ENCODER | PREDICTOR


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_the_built_in_cuts_partition_the_trainable_parameters(name: str) -> None:
    model, cut = build_model(name, num_classes=5, in_channels=1, image_size=8, num_features=64, seed=1)
    split = make_split(model, cut)
    encoder, predictor = split.encoder_parameters(model), split.predictor_parameters(model)
    assert {*predictor} == {f"{cut[0]}.weight", f"{cut[0]}.bias"}
    assert [*encoder, *predictor] == [name for name, _ in model.named_parameters()]


def test_encoder_statistics_are_its_floating_buffers() -> None:
    model = Tiny()
    statistics = make_split(model, ["head"]).encoder_statistics(model)
    assert set(statistics) == STATISTICS
    assert all(tensor is model.get_buffer(name) for name, tensor in statistics.items())


@pytest.mark.parametrize("statistics", [False, True])
def test_private_state_is_the_predictor_and_on_request_the_encoders_buffers(statistics: bool) -> None:
    model = Tiny()
    state = make_split(model, ["head"]).private_state(model, statistics=statistics)
    assert set(state) == PRIVATE | ((STATISTICS | {"norm.num_batches_tracked"}) if statistics else set())


def test_private_state_is_a_detached_copy() -> None:
    model = Tiny()
    state = make_split(model, ["head"]).private_state(model, statistics=True)
    before = {name: tensor.clone() for name, tensor in state.items()}
    scramble_(model)
    assert same_states(state, before)
    assert not any(tensor.requires_grad for tensor in state.values())


@pytest.mark.parametrize("statistics", [False, True])
def test_private_state_round_trips_bit_for_bit_and_touches_nothing_else(statistics: bool) -> None:
    model = Tiny()
    model.get_buffer("norm.num_batches_tracked").fill_(2**40 + 1)  # no float32 holds this count
    split = make_split(model, ["head"])
    state = split.private_state(model, statistics=statistics)
    scramble_(model)
    expected = snapshot(model) | state
    split.load_private_state_(model, state)
    assert same_states(snapshot(model), expected)


def test_loading_keeps_the_parameters_the_optimiser_holds() -> None:
    model = Tiny()
    split = make_split(model, ["head"])
    held = split.predictor_parameters(model)
    split.load_private_state_(model, split.private_state(model, statistics=False))
    assert all(parameter is held[name] for name, parameter in split.predictor_parameters(model).items())
    assert all(parameter.requires_grad and parameter.grad_fn is None for parameter in held.values())


def test_with_an_empty_cut_all_is_encoder_and_only_statistics_are_private() -> None:
    model = Tiny()
    split = make_split(model, [])
    assert set(split.encoder_parameters(model)) == ENCODER | PREDICTOR
    assert split.predictor_parameters(model) == {}
    assert split.private_state(model, statistics=False) == {}
    assert set(split.private_state(model, statistics=True)) == {name for name, _ in model.named_buffers()}


def test_tied_weights_inside_the_predictor_round_trip() -> None:
    model = nn.ModuleDict({"body": nn.Linear(2, 2), "first": nn.Linear(2, 2), "second": nn.Linear(2, 2)})
    model["second"].weight = model["first"].weight
    split = make_split(model, ["first", "second"])
    state = split.private_state(model, statistics=True)
    assert set(state) == {"first.weight", "first.bias", "second.bias"}
    expected = snapshot(model)
    scramble_(model)
    split.load_private_state_(model, state)
    restored = snapshot(model)
    assert all(torch.equal(restored[name], expected[name]) for name in expected if not name.startswith("body"))
    assert model["second"].weight is model["first"].weight


def test_tied_weights_inside_the_encoder_are_listed_once() -> None:
    model = nn.ModuleDict({"first": nn.Linear(2, 2), "second": nn.Linear(2, 2), "fc": nn.Linear(2, 2)})
    model["second"].weight = model["first"].weight
    encoder = make_split(model, ["fc"]).encoder_parameters(model)
    assert [*encoder] == ["first.weight", "first.bias", "second.bias"]


def test_a_trainable_parameter_tied_across_the_cut_is_refused() -> None:
    model = nn.ModuleDict({"body": nn.Linear(2, 2), "fc": nn.Linear(2, 2)})
    model["fc"].weight = model["body"].weight
    with pytest.raises(ModelError, match=r"'body\.weight' and 'fc\.weight' are one tied parameter"):
        make_split(model, ["fc"])


def test_a_submodule_can_be_cut_by_its_second_name_only_together_with_its_first() -> None:
    model = nn.ModuleDict({"body": nn.Linear(2, 2), "fc": nn.Linear(2, 2)})
    model["alias"] = model["fc"]
    with pytest.raises(ModelError, match="tied parameter"):
        make_split(model, ["alias"])
    assert set(make_split(model, ["fc", "alias"]).predictor_parameters(model)) == {"fc.weight", "fc.bias"}


@pytest.mark.parametrize("name", ["classifier", "", "head.", "conv.weight"])
def test_a_cut_that_is_not_a_submodule_lists_those_there_are(name: str) -> None:
    with pytest.raises(ModelError, match=r"not a submodule of Tiny.* conv, norm, frozen, head, head2 "):
        make_split(Tiny(), [name])


@pytest.mark.parametrize("cut", ["head", 3, [3]])
def test_a_cut_that_is_not_a_list_of_names_is_refused(cut: object) -> None:
    with pytest.raises(ModelError, match="must be a list of submodule names"):
        make_split(Tiny(), cut)  # type: ignore[arg-type]  # the mistake under test


@pytest.mark.parametrize("cut", [["conv", "norm", "head", "head2"], ["conv", "norm", "frozen", "head", "head2"]])
def test_a_cut_that_leaves_the_encoder_nothing_to_train_is_refused(cut: list[str]) -> None:
    with pytest.raises(ModelError, match="leaves no trainable parameter to the encoder"):
        make_split(Tiny(), cut)


def test_a_predictor_with_nothing_to_train_is_refused() -> None:
    with pytest.raises(ModelError, match=r"the predictor \['frozen'\] has no trainable parameter"):
        make_split(Tiny(), ["frozen"])


def test_a_model_with_lazy_layers_is_refused() -> None:
    model = nn.ModuleDict({"body": nn.LazyLinear(2), "fc": nn.Linear(2, 2)})
    with pytest.raises(ModelError, match=r"'body\.weight', 'body\.bias' of ModuleDict has no shape yet"):
        make_split(model, ["fc"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"head.fc.bias": None}, r"lacks 'head\.fc\.bias'"),
        ({"norm.running_var": None}, r"lacks 'norm\.running_var'"),
        ({"nothing": torch.zeros(1)}, "holds 'nothing'"),
        ({"conv.weight": torch.zeros(2, 1, 3, 3)}, r"holds 'conv\.weight', which this model does not keep to itself"),
        ({"head.fc.bias": torch.zeros(4)}, r"'head\.fc\.bias' must be \[3\] of torch.float32, got \[4\]"),
        ({"head.fc.bias": torch.zeros(1)}, r"'head\.fc\.bias' must be \[3\] of torch.float32, got \[1\]"),
        ({"head.fc.bias": torch.zeros(3, dtype=torch.float64)}, "got .* of torch.float64"),
        ({f"x{number}": torch.zeros(1) for number in range(5)}, "holds 'x0', 'x1', 'x2' and 2 more"),
    ],
)
def test_a_private_state_that_does_not_fit_is_refused_whole(changes: dict[str, Tensor | None], message: str) -> None:
    model = Tiny()
    split = make_split(model, ["head"])
    changed = split.private_state(model, statistics=True) | changes
    scramble_(model)
    before = snapshot(model)
    with pytest.raises(ModelError, match=message):
        split.load_private_state_(model, {name: tensor for name, tensor in changed.items() if tensor is not None})
    assert same_states(snapshot(model), before)
