"""The scale of inputs is that of all clients' training examples, and of nothing else."""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from spatl.config.loading import parse_config
from spatl.data import Dataset
from spatl.data.normalisation import Normalisation, num_scaled
from spatl.data.own import agree, as_found, describe, fit
from spatl.data.scaling import deviations_of, merged, moments_of, moments_of_each, scaled, scaled_by_training
from spatl.data.sources import load_dataset
from spatl.errors import ConfigError, DataError
from spatl.rounds.client_data import load_clients, split_client
from spatl.tensors.inputs import NamedInputs

VALUES = st.floats(-1e4, 1e4, width=32)
SHAPES = st.tuples(st.integers(2, 9), st.integers(1, 3), st.integers(1, 4))


def as_dataset(inputs: torch.Tensor, **more: Any) -> Dataset:
    return Dataset("some", inputs, torch.arange(len(inputs)) % 2, num_classes=2, **more)


@pytest.mark.slow
@given(st.data(), SHAPES, st.sampled_from(["channel", "feature"]))
def test_moments_of_parts_are_those_of_the_whole(data: st.DataObject, shape: tuple[int, ...], scale: Any) -> None:
    values = torch.from_numpy(data.draw(arrays(np.float32, shape, elements=VALUES)))
    cut = data.draw(st.integers(1, shape[0] - 1))
    together = merged([moments_of(values[:cut], scale), moments_of(values[cut:], scale)])
    whole = values.double().numpy()
    axes = (0, 2) if scale == "channel" else (0,)
    assert together.count == values.numel() // num_scaled(shape[1:], scale)
    size = max(1.0, float(np.abs(whole).max()))
    np.testing.assert_allclose(together.means, whole.mean(axes).ravel(), rtol=1e-12, atol=1e-9 * size)
    np.testing.assert_allclose(
        [square / together.count for square in together.squares], whole.var(axes).ravel(), rtol=1e-9,
        atol=1e-12 * size**2,
    )  # fmt: skip


@given(arrays(np.uint8, (7, 2, 3)))
def test_moments_of_pixels_are_exact(pixels: np.ndarray[Any, Any]) -> None:
    moments = moments_of(torch.from_numpy(pixels).float(), "channel")
    for channel in range(2):
        values = [int(each) for each in pixels[:, channel].ravel()]
        assert moments.means[channel] == sum(values) / 21
        assert moments.squares[channel] == (21 * sum(each**2 for each in values) - sum(values) ** 2) / 21


@pytest.mark.parametrize("scale", ["channel", "feature"])
def test_moments_of_many_parts_have_the_bits_of_each_ones_own(scale: Any) -> None:
    """Parts of whole numbers beside one with a fraction, one too large for exact sums, and one that shares examples."""
    values = torch.randint(0, 256, (40, 2, 700), generator=torch.Generator().manual_seed(1)).float()
    values[11, 1, 3] += 0.25
    values[25, 0, 0] = 2.0**21
    parts = [torch.arange(0, 7), torch.tensor([12, 30, 11]), torch.tensor([25]), torch.tensor([30, 5, 39, 38])]
    assert moments_of_each(values, parts, scale) == [moments_of(values[part], scale) for part in parts]
    assert moments_of_each(values, [], scale) == []


@given(st.data(), SHAPES, st.sampled_from(["channel", "feature"]))
def test_what_is_scaled_in_memory_is_what_a_models_user_gets(
    data: st.DataObject, shape: tuple[int, ...], scale: Any
) -> None:
    values = data.draw(arrays(np.float32, shape, elements=VALUES))
    moments = moments_of(torch.from_numpy(values), scale)
    normalisation = Normalisation(moments.means, deviations_of(moments), scale)
    assert np.array_equal(normalisation.apply(values), scaled(torch.from_numpy(values), normalisation).numpy())


def test_equal_values_become_zero() -> None:
    dataset = scaled_by_training(as_dataset(torch.full((4, 2), 7.0)), [torch.arange(4)], "feature")
    assert dataset.normalisation == Normalisation((7.0, 7.0), (1.0, 1.0), "feature")
    assert not torch.as_tensor(dataset.images).any()


@pytest.mark.parametrize("normalisation", [None, "feature"])
def test_test_and_validation_examples_have_no_part_in_the_scale(normalisation: str | None) -> None:
    """The pooled training splits have mean 0 and variance 1 exactly, as the whole data set has not."""
    config = parse_config({
        "data": {"normalisation": normalisation}, "partition": {"num_clients": 5, "alpha": 0.3}, "seed": 3
    })  # fmt: skip
    dataset, parts = load_clients(config)
    clients = [split_client(config, dataset, parts, client) for client in range(5)]
    train = torch.cat([client.train.images for client in clients]).double()
    axes = (0, 2, 3) if normalisation is None else (0,)
    spread = train.std(axes, unbiased=False)
    assert train.mean(axes).abs().max() < 1e-6
    assert torch.allclose(spread[spread > 0], torch.ones(1, dtype=torch.float64), atol=1e-5)
    assert torch.as_tensor(dataset.images).double().mean().abs() > 1e-5


def test_all_examples_make_the_scale_where_the_config_says_so() -> None:
    config = parse_config({"data": {"normalisation": "dataset"}, "partition": {"num_clients": 5}})
    assert torch.equal(load_clients(config)[0].images, load_dataset("digits", seed=1).images)


def test_another_scale_is_answered_with_those_that_there_are() -> None:
    with pytest.raises(ConfigError) as caught:
        parse_config({"data": {"normalisation": "features"}})
    assert str(caught.value) == (
        "data.normalisation: input should be 'none', 'channel', 'feature' or 'dataset', got 'features'"
    )


def test_devices_agree_on_the_scale_that_a_simulation_of_them_has() -> None:
    config = parse_config({"partition": {"num_clients": 4}, "seed": 2})
    dataset, parts = load_clients(config)
    with as_found():
        found = load_dataset("digits", seed=2)
    raw = [split_client(config, found, parts, client) for client in range(4)]
    owned = [replace(found, inputs=found.images[part], targets=found.targets[part]) for part in parts]
    described = {client: describe(owned[client], raw[client].train.inputs) for client in range(4)}
    agreement, misfits = agree(described)
    assert misfits == {}
    assert agreement.normalisation == dataset.normalisation
    assert torch.equal(fit(owned[1], agreement).images, dataset.images[parts[1]])


def test_devices_with_other_examples_or_another_scale_are_left_out() -> None:
    images, tokens = torch.rand(4, 3), torch.arange(12).reshape(4, 3)
    described = [
        describe(as_dataset(images, scale="feature"), images),
        describe(as_dataset(images, scale="feature"), images),
        describe(as_dataset(images), images),
        describe(as_dataset(tokens), tokens),
    ]
    agreement, misfits = agree(dict(enumerate(described)))
    assert agreement.scale == "feature"
    assert misfits == {
        2: "its examples are numbers 3, those of 2 of 4 clients numbers scaled by feature 3",
        3: "its examples are tokens 3, those of 2 of 4 clients numbers scaled by feature 3",
    }
    with pytest.raises(DataError, match=r"the examples here are int64 \[4, 3\], the clients have agreed on other num"):
        fit(as_dataset(tokens), agreement)


@pytest.mark.parametrize("scale", ["channel", "feature"])
def test_how_images_lie_in_memory_changes_nothing(scale: Any) -> None:
    """Arrays whose channels came last are views of them."""
    last = torch.rand(6, 4, 5, 3, generator=torch.Generator().manual_seed(1))
    views, copies = (as_dataset(each) for each in (last.permute(0, 3, 1, 2), last.permute(0, 3, 1, 2).contiguous()))
    training = [torch.arange(4)]
    found, expected = (scaled_by_training(each, training, scale) for each in (views, copies))
    assert found.normalisation == expected.normalisation
    assert torch.equal(found.images, expected.images)
    agreement, _ = agree({0: describe(copies, copies.images, scale)})
    assert torch.equal(fit(views, agreement).images, fit(copies, agreement).images)


def test_one_wide_column_leaves_the_others_alone() -> None:
    """A column a million times as wide as the others takes nothing from them, as one scale for all would."""
    draw = torch.Generator().manual_seed(1)
    table = torch.randn(100, 3, generator=draw)
    wide = torch.cat([table, 1e6 * torch.randn(100, 1, generator=draw)], dim=1)
    narrow = scaled_by_training(as_dataset(table), [torch.arange(100)], "feature")
    both = scaled_by_training(as_dataset(wide), [torch.arange(100)], "feature")
    assert torch.equal(both.images[:, :3], narrow.images)
    assert float(both.images[:, 3].std()) == pytest.approx(1, abs=0.01)


def test_what_has_no_scale_says_what_to_do() -> None:
    tokens = as_dataset(torch.arange(12).reshape(4, 3))
    named = Dataset("two", NamedInputs({"a": torch.rand(4, 2), "b": torch.rand(4, 1)}), torch.arange(4) % 2, 2)
    for dataset in (tokens, named):
        assert scaled_by_training(dataset, [torch.arange(4)], None) is dataset
        with pytest.raises(DataError, match=r"set data\.normalisation: none"):
            scaled_by_training(dataset, [torch.arange(4)], "feature")
    with pytest.raises(DataError, match="no client has a training example"):
        scaled_by_training(as_dataset(torch.rand(4, 2)), [torch.arange(0)], "feature")


def test_the_data_of_the_user_stay_as_they_are() -> None:
    values = torch.rand(6, 2)
    before = values.clone()
    scaled_by_training(as_dataset(values), [torch.arange(6)], "channel")
    assert torch.equal(values, before)
    assert not math.isnan(float(values.sum()))
