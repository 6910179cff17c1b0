"""Devices with data of their own and another task: they agree on the scale of targets, and on what outputs are."""

import json

import numpy as np
import pytest
import torch

from spatl.data import Dataset
from spatl.data.brought import dataset_of
from spatl.data.own import Agreement, Description, agree, alone, describe, fit
from spatl.errors import DataError
from spatl.report.result import read_run
from spatl.runs.directory import config_of
from tests.support.own_data import own_config, serve_devices


def values(number: int, *, seed: int, offset: float) -> tuple[np.ndarray, np.ndarray]:
    draws = np.random.default_rng(seed)
    inputs = draws.normal(size=(number, 5)).astype(np.float32)
    return inputs, (offset + 3 * inputs.sum(1)).astype(np.float32)


def described(number: int, *, seed: int, offset: float) -> tuple[Description, torch.Tensor]:
    dataset = dataset_of(values(number, seed=seed, offset=offset), name="mine", where="mine", task="regression")
    told = describe(dataset, dataset.inputs, targets=dataset.targets)
    return Description.from_bytes(told.to_bytes()), dataset.targets


@pytest.mark.slow
def test_devices_learn_a_regression_in_one_scale(tmp_path):
    """Each device's values are far from the others'; the scale is that of all, and the federation learns them."""
    for client, offset in enumerate((0.0, 50.0, 100.0)):
        inputs, targets = values(80, seed=client, offset=offset)
        np.savez(tmp_path / f"{client}.npz", inputs=inputs, targets=targets)
    config = own_config(
        task={"name": "regression"}, model={"name": "mlp", "options": {"hidden": [16]}}, rounds=4,
        training={"local_steps": 20, "learning_rate": 0.05},
    )  # fmt: skip
    summary = serve_devices(config, tmp_path)
    agreed = config_of(tmp_path / "run").data.agreed
    assert agreed is not None
    assert agreed.target_means[0] == pytest.approx(50, abs=5)
    assert agreed.target_deviations[0] == pytest.approx(41, abs=5)
    assert summary["metric"] == "mae"
    assert summary["metrics"]["mae_pooled"] < 40


def test_the_scale_of_targets_is_that_of_all_training_examples_together():
    devices = [described(number, seed=seed, offset=7.0 * seed) for seed, number in enumerate((9, 30, 4))]
    agreement, misfits = agree({client: told for client, (told, _) in enumerate(devices)})
    together = torch.cat([targets for _, targets in devices]).double()
    assert not misfits
    assert agreement.target_means == pytest.approx([float(together.mean())])
    assert agreement.target_deviations == pytest.approx([float(together.std(correction=0))])
    dataset = dataset_of(values(9, seed=0, offset=0.0), name="mine", where="mine", task="regression")
    fitted = fit(dataset, agreement)
    expected = (dataset.targets.double() - agreement.target_means[0]) / agreement.target_deviations[0]
    torch.testing.assert_close(fitted.targets.double(), expected, rtol=1e-6, atol=1e-6)
    assert fitted.target_scale == agreement.target_scale


def test_who_has_other_outputs_does_not_fit_in():
    two = dataset_of((np.zeros((3, 5)), np.ones((3, 2))), name="mine", where="mine", task="regression")
    other = describe(two, two.inputs, targets=two.targets)
    told = {0: described(5, seed=1, offset=0.0)[0], 1: described(5, seed=2, offset=0.0)[0], 2: other}
    agreement, misfits = agree(told)
    assert agreement.classes == ("0",)
    assert set(misfits) == {2}
    assert "for regression with the targets 0, 1, those of 2 of 3 clients" in misfits[2]
    with pytest.raises(DataError, match="the clients have agreed on"):
        fit(two, agreement)


def sequences(*names: str) -> Dataset:
    """Sequences of each of some tokens, by name."""
    tokens = torch.arange(4).repeat(2, 1) % len(names)
    return Dataset("words", tokens, tokens, num_classes=len(names), class_names=names, num_tokens=len(names),
                   task="next-token")  # fmt: skip


def described_tokens(*names: str) -> Description:
    dataset = sequences(*names)
    return Description.from_bytes(describe(dataset, dataset.inputs).to_bytes())


def test_a_token_has_one_name_for_one_number_on_all_devices():
    """Numbers are what sequences hold: where x is 0 here and 1 there, both would be taken for the same."""
    told = {0: described_tokens("b", "a", "c"), 1: described_tokens("b", "a"), 2: described_tokens("a", "b")}
    agreement, misfits = agree(told)
    assert agreement.classes == ("b", "a", "c")
    assert misfits == {2: "its tokens are a, b, others have b, a, c"}
    assert fit(sequences("b", "a"), agreement).targets.tolist() == [[0, 1, 0, 1]] * 2
    with pytest.raises(DataError, match="the clients have agreed on b, a, c"):
        fit(sequences("a", "b"), agreement)


def test_a_device_of_one_class_alone_has_another_for_the_time_being_whatever_its_name():
    for names in (("other",), ("another",), ("other", "another")):
        labels = np.array(names)[np.arange(4) % len(names)]
        images = dataset_of((np.zeros((4, 5)), labels), name="mine", where="mine")
        found = alone(describe(images, images.inputs)).classes
        assert set(names) <= set(found)
        assert len(found) == 2


def test_a_description_of_a_classification_says_nothing_of_other_tasks():
    told, _ = described(5, seed=1, offset=0.0)
    assert json.loads(told.to_bytes())["task"] == "regression"
    images = dataset_of((np.zeros((4, 5)), np.array([0, 1, 1, 0])), name="mine", where="mine")
    assert not {key for key in json.loads(describe(images, images.inputs).to_bytes()) if key.startswith("ta")}
    assert "target_means" not in Agreement(("0", "1"), (5,), (0.0,), (1.0,)).told()


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"task": "ranking"}, "must be of a task, got 'ranking'"),
        ({"target_means": []}, "expected a mean and a square for each of 1 outputs"),
        ({"target_squares": [-1.0]}, "means and squares of values must lie in"),
        ({"target_means": [True]}, "expected a mean and a square for each of 1 outputs"),
    ],
)
def test_a_description_that_cannot_be_is_refused(changes, line):
    content = json.loads(described(5, seed=1, offset=0.0)[0].to_bytes()) | changes
    with pytest.raises(DataError, match=line):
        Description.from_bytes(json.dumps(content).encode())


@pytest.mark.slow
def test_a_test_file_of_the_servers_is_judged_in_the_targets_own_units(tmp_path):
    """By hand: the mean distance of what the model says from the file's targets, by the scale of the devices alone."""
    for client in range(3):
        inputs, targets = values(60, seed=client, offset=10.0)
        np.savez(tmp_path / f"{client}.npz", inputs=inputs, targets=targets)
    inputs, targets = values(25, seed=9, offset=1000.0)
    np.savez(tmp_path / "test.npz", inputs=inputs, targets=targets)
    config = own_config(
        task={"name": "regression"}, model={"name": "mlp", "options": {"hidden": [8]}}, rounds=1,
        report={"test_data": str(tmp_path / "test.npz")},
    )  # fmt: skip
    summary = serve_devices(config, tmp_path)
    agreed = config_of(tmp_path / "run").data.agreed.agreement()
    model = read_run(tmp_path / "run").model()
    with torch.no_grad():
        found = model(torch.from_numpy(agreed.normalisation.apply(inputs)))
    expected = float((found[:, 0] - torch.from_numpy(targets)).abs().mean())
    assert summary["global_examples"] == 25
    assert summary["global_score"] == pytest.approx(expected, rel=1e-4)
    assert summary["global_score"] > 900
