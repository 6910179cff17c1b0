import hashlib
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from spatl.errors import ModelError
from spatl.models import MODELS, build_model, make_split
from spatl.models.build import offered_sizes
from tests.support import networks
from tests.support.bits import same_states
from tests.support.user_net import UserNet

USER = "tests.support.user_net:"
IMAGE_MODELS = [name for name, entry in MODELS.items() if entry.takes_images]


def build(name: str, *, seed: int = 1, **keywords: object) -> nn.Module:
    sizes = {"num_classes": 10, "in_channels": 1, "image_size": 8}
    model, _ = build_model(name, **(sizes | keywords), seed=seed)  # type: ignore[arg-type]  # the tests' own keywords
    return model


def user(factory: str, **keywords: object) -> nn.Module:
    return build(f"{USER}{factory}", **({"cut": ()} | keywords))  # type: ignore[arg-type]  # as above


@pytest.mark.slow
@pytest.mark.parametrize(("in_channels", "image_size"), [(1, 8), (1, 28), (3, 32)])
@pytest.mark.parametrize("name", IMAGE_MODELS)
def test_every_model_trains_on_small_images(name: str, in_channels: int, image_size: int) -> None:
    model = build(name, in_channels=in_channels, image_size=image_size)
    images = torch.randn(4, in_channels, image_size, image_size, generator=torch.Generator().manual_seed(1))
    assert model.training
    logits = model(images)
    assert logits.shape == (4, 10)
    F.cross_entropy(logits, torch.arange(4)).backward()  # type: ignore[no-untyped-call]  # torch's own
    gradients = [parameter.grad for parameter in model.parameters()]
    assert torch.isfinite(logits).all()
    assert all(gradient is not None and torch.isfinite(gradient).all() for gradient in gradients)


@pytest.mark.parametrize("image_size", [8, 13, 32])
@pytest.mark.parametrize("name", ["cnn", "resnet8", "vgg11", "mobilenet"])
def test_a_last_batch_of_one_image_trains(name: str, image_size: int) -> None:
    assert build(name, image_size=image_size)(torch.ones(1, 1, image_size, image_size)).shape == (1, 10)


@pytest.mark.parametrize("name", ["cnn", "resnet8", "vgg11", "mobilenet"])
def test_the_largest_images_fit(name: str) -> None:
    assert build(name, in_channels=3, image_size=64).eval()(torch.ones(1, 3, 64, 64)).shape == (1, 10)


@pytest.mark.slow
@pytest.mark.parametrize("name", [*IMAGE_MODELS, f"{USER}UserNet"])
def test_one_seed_gives_the_same_weights_and_another_others(name: str) -> None:
    model = build(name, cut=())
    torch.rand(7)  # what was drawn before must not matter
    assert same_states(model.state_dict(), build(name, cut=()).state_dict())
    other = build(name, cut=(), seed=2).state_dict()
    drawn = [name for name, parameter in model.named_parameters() if parameter.dim() > 1]
    assert not any(torch.equal(model.state_dict()[name], other[name]) for name in drawn)


@pytest.mark.parametrize(
    ("name", "fingerprint"),
    [("cnn", "35cd7d07f4c0181d"), ("resnet8", "94392f209bcbd10e"), ("vgg11", "51ca3edbffd53a13")],
)
def test_the_initial_bits_are_the_same_on_every_machine(name: str, fingerprint: str) -> None:
    """Participants build the encoder from the seed instead of downloading it, so its bits are part of the protocol.

    The prints were taken once, and are equal with and without vector instructions (ATEN_CPU_CAPABILITY=default).
    """
    digest = hashlib.blake2b(digest_size=8)
    for parameter in build(name, options={"hidden": 32} if name == "cnn" else {"width": 0.25}).parameters():
        digest.update(parameter.detach().numpy().astype("<f4").tobytes())
    assert digest.hexdigest() == fingerprint


@pytest.mark.parametrize("name", ["resnet8", f"{USER}UserNet"])
def test_building_leaves_the_global_generator_as_it_was(name: str) -> None:
    before = torch.get_rng_state()
    build(name, cut=())
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.slow
def test_no_relu_works_in_place() -> None:
    modules = [module for name in IMAGE_MODELS for module in build(name).modules()]
    assert not any(getattr(module, "inplace", False) for module in modules)


@pytest.mark.parametrize(
    ("cut", "in_force"), [(None, ("classifier",)), (["hidden", "classifier"], ("hidden", "classifier")), ([], ())]
)
def test_the_users_cut_replaces_the_models_own(cut: list[str] | None, in_force: tuple[str, ...]) -> None:
    _, returned = build_model("cnn", num_classes=3, in_channels=1, image_size=8, cut=cut, seed=1)
    assert returned == in_force


def test_options_reach_the_factory() -> None:
    model = build("cnn", options={"channels": [3, 5], "hidden": 7})
    assert [tuple(parameter.shape) for parameter in model.parameters() if parameter.dim() > 1] == [
        (3, 1, 5, 5),
        (5, 3, 5, 5),
        (7, 5 * 2 * 2),
        (10, 7),
    ]


def test_a_users_network_is_built_with_the_sizes_and_options_its_signature_names() -> None:
    model, cut = build_model(
        f"{USER}UserNet", num_classes=3, in_channels=2, image_size=8, cut=["head"], options={"width": 4}, seed=1
    )
    assert isinstance(model, UserNet)
    assert model(torch.ones(4, 2, 8, 8)).shape == (4, 3)
    assert set(make_split(model, cut).predictor_parameters(model)) == {
        "head.0.weight",
        "head.0.bias",
        "head.1.weight",
        "head.1.bias",
    }


def test_a_factory_of_any_keywords_receives_everything() -> None:
    assert vars(user("anything_goes", options={"extra": 5}))["received"] == {
        "num_classes": 10,
        "in_channels": 1,
        "image_size": 8,
        "extra": 5,
    }


def test_a_factory_of_no_keywords_receives_nothing() -> None:
    assert isinstance(user("needs_nothing"), nn.Sequential)


def test_a_module_that_draws_numbers_when_imported_does_not_shift_the_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = "import torch\ntorch.rand(3)\ndef net():\n    return torch.nn.Linear(2, 2)\n"
    (tmp_path / "draws_on_import.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    first, again = (build("draws_on_import:net", cut=()) for _ in range(2))
    assert same_states(first.state_dict(), again.state_dict())


def test_a_users_model_without_a_cut_is_told_how_to_give_one() -> None:
    with pytest.raises(ModelError, match=r"model\.cut in the config.* stem, depthwise, norm, branch, head$"):
        build(f"{USER}UserNet")


def test_a_cut_that_is_a_bare_string_is_refused() -> None:
    with pytest.raises(ModelError, match="must be a list of submodule names"):
        build("cnn", cut="classifier")


def test_an_unknown_name_lists_the_known_ones_and_suggests_the_closest() -> None:
    with pytest.raises(
        ModelError, match=r"\(did you mean 'resnet20'\?\).* cnn, resnet8, .*vgg11.*package\.module:factory"
    ):
        build("resnet_20")


def test_an_unknown_name_like_no_other_gets_no_suggestion() -> None:
    with pytest.raises(ModelError, match=r"^unknown model 'transformer'; known: cnn, "):
        build("transformer")


@pytest.mark.parametrize("reference", [":Net", "package:", ":"])
def test_half_a_reference_is_refused(reference: str) -> None:
    with pytest.raises(ModelError, match="is written"):
        build(reference, cut=())


@pytest.mark.parametrize("reference", ["no_such_package:Net", "no_such_package.networks:Net"])
def test_a_module_that_is_not_there_is_named(reference: str) -> None:
    with pytest.raises(ModelError, match=r"no module named 'no_such_package': is it installed, or .* PYTHONPATH"):
        build(reference, cut=())


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("import missing_dependency", "it needs the module 'missing_dependency', which is not installed"),
        ("from torch import no_such_name", "ImportError: cannot import name 'no_such_name' from 'torch'"),
        ("raise ModuleNotFoundError('by hand')", "ModuleNotFoundError: by hand"),
        ("1 / 0", "ZeroDivisionError: division by zero"),
        ("def broken(", "SyntaxError: "),
    ],
)
def test_a_module_that_fails_to_import_says_why(
    source: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "fails_to_import.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModelError, match=f"'fails_to_import' cannot be imported: {message}") as caught:
        build("fails_to_import:Net", cut=())
    assert caught.value.__cause__ is not None


def test_a_missing_attribute_is_named_with_the_closest() -> None:
    with pytest.raises(ModelError, match=r"user_net' has no 'UserNett' \(did you mean 'UserNet'\?\)"):
        user("UserNett")


@pytest.mark.parametrize(("attribute", "kind"), [("INSTANCE", "Linear"), ("A_NUMBER", "int")])
def test_what_is_not_a_factory_is_refused(attribute: str, kind: str) -> None:
    with pytest.raises(ModelError, match=f"'{attribute}' must be a class or function .* of type {kind}"):
        user(attribute)


def test_what_a_factory_raises_is_told_in_one_line_and_stays_attached() -> None:
    told = r"failed: ZeroDivisionError: first line \(user_net\.py:\d+, in divides_by_zero\)$"
    with pytest.raises(ModelError, match=told) as caught:
        user("divides_by_zero")
    assert isinstance(caught.value.__cause__, ZeroDivisionError)


def test_a_factorys_own_model_error_passes_unchanged() -> None:
    with pytest.raises(ModelError, match=r"^a clear line of the factory's own$"):
        user("knows_better")


def test_a_factory_must_return_a_module() -> None:
    with pytest.raises(ModelError, match=r"must return a torch\.nn\.Module, got str"):
        user("not_a_module")


def test_a_callable_without_a_signature_is_given_everything_and_its_result_checked() -> None:
    with pytest.raises(ModelError, match=r"must return a torch\.nn\.Module, got dict"):
        build("builtins:dict", options={"anything": 1}, cut=())


@pytest.mark.parametrize(
    ("name", "option", "message"),
    [
        ("cnn", "hiden", r"no option 'hiden' \(did you mean 'hidden'\?\); it takes channels, hidden "),
        ("resnet20", "depth", "no option 'depth'.*; it takes width "),
        (f"{USER}needs_nothing", "width", "no option 'width'; it takes none "),
        (f"{USER}UserNet", "num_classes", "'num_classes' is given by the data"),
    ],
)
def test_an_option_the_factory_does_not_take_is_named(name: str, option: str, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        build(name, options={option: 3}, cut=())


@pytest.mark.parametrize("name", IMAGE_MODELS)
@pytest.mark.parametrize(
    ("size", "message"),
    [({"num_classes": 0}, "at least 1"), ({"in_channels": 0}, "at least 1"), ({"image_size": 7}, "at least 8")],
)
def test_sizes_out_of_range_are_refused(name: str, size: dict[str, int], message: str) -> None:
    with pytest.raises(ModelError, match=f"{next(iter(size))} must be {message}, got "):
        build(name, **size)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("cnn", {"channels": [32]}, "channels must be two positive numbers"),
        ("cnn", {"channels": [0, 64]}, "channels must be two positive numbers"),
        ("cnn", {"channels": 32}, "TypeError"),
        ("cnn", {"hidden": 0}, "hidden must be at least 1"),
        ("resnet8", {"width": 0}, "width must be a positive number"),
        ("vgg11", {"width": float("nan")}, "width must be a positive number"),
        ("vgg11", {"width": "wide"}, "TypeError"),
    ],
)
def test_options_out_of_range_are_refused(name: str, options: dict[str, object], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        build(name, options=options)


def test_every_entry_says_what_it_is_and_where_it_comes_from() -> None:
    assert all(entry.description and entry.source for entry in MODELS.values())


def test_the_description_of_an_entry_names_its_options() -> None:
    for name, entry in MODELS.items():
        options = entry.description.partition("options: ")[2]
        with pytest.raises(ModelError, match=f"it takes {options} "):
            build(name, options={"no such option": 0}, num_features=5)


def test_a_perceptron_takes_numbers_of_any_shape() -> None:
    model, cut = build_model("mlp", num_classes=3, num_features=6, options={"hidden": [5, 4]}, seed=1)
    assert cut == ("classifier",)
    assert [tuple(each.shape) for each in model.parameters() if each.dim() == 2] == [(5, 6), (4, 5), (3, 4)]
    numbers = torch.rand(7, 2, 3, generator=torch.Generator().manual_seed(1))
    assert torch.equal(model(numbers), model(numbers.flatten(1)))
    for hidden in ([], 64, "64", [0], [True], [2.0]):
        with pytest.raises(ModelError, match="model 'mlp': "):
            build_model("mlp", num_classes=3, num_features=6, options={"hidden": hidden}, seed=1)


def test_a_model_for_images_says_what_other_examples_need() -> None:
    with pytest.raises(ModelError, match=r"'cnn' takes images \[N, C, H, W\], got examples of \(8,\): take the model"):
        build_model("cnn", num_classes=3, num_features=8, input_shape=(8,), seed=1)


@pytest.mark.parametrize(
    ("sizes", "asked", "message"),
    [
        ({"num_features": 2, "input_shape": (2,)}, "num_tokens", "floating point do not say: tokens are whole numbers"),
        ({"num_features": 2, "input_shape": (2,)}, "length", "floating point do not say: tokens are whole numbers"),
        ({"num_tokens": 9, "length": 5, "input_shape": (5,)}, "num_features", "tokens do not say: take num_tokens and"),
        ({"input_shapes": {"a": (2,)}}, "in_channels", r"several inputs do not say \(take input_shapes\)"),
        ({"num_features": 2, "input_shape": (2,)}, "depth", "which nobody gives"),
    ],
)
def test_a_factory_that_asks_for_what_the_data_do_not_say_is_told_why(
    monkeypatch: pytest.MonkeyPatch, sizes: dict[str, object], asked: str, message: str
) -> None:
    namespace: dict[str, object] = {}
    exec(f"def made(num_classes, {asked}): ...", namespace)
    monkeypatch.setattr(networks, "made", namespace["made"], raising=False)
    with pytest.raises(ModelError, match=f"needs '{asked}', .*{message}"):
        build_model("tests.support.networks:made", num_classes=2, options={}, seed=1, **sizes)


def test_a_factory_is_given_the_sizes_that_it_names_and_an_option_goes_before_them() -> None:
    def factory(num_classes: int, num_features: int, length: int = 7) -> nn.Module:
        return nn.Linear(num_features, num_classes + length)

    sizes = {"num_classes": 2, "num_features": 3, "input_shape": (3,), "length": 5}
    assert offered_sizes(factory, sizes, {}) == {"num_classes": 2, "num_features": 3, "length": 5}
    assert offered_sizes(factory, sizes, {"length": 1}) == {"num_classes": 2, "num_features": 3}
    assert offered_sizes(lambda **any_of_them: nn.Identity(), sizes, {}) == {"num_classes": 2}


@pytest.mark.slow
def test_a_networks_output_depends_on_its_input() -> None:
    images = torch.rand(2, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    for name in IMAGE_MODELS:
        logits: Tensor = build(name).eval()(images)
        assert not torch.allclose(logits[0], logits[1])
