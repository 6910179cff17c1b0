"""Test examples of the server's own, while devices have data of theirs."""

import numpy as np
import pytest
import torch

from spatl.artifacts.model_files import read_model
from spatl.config.loading import load_config, parse_config
from spatl.config.unread import settings_without_effect
from spatl.data import load_dataset
from spatl.data.own import as_found
from spatl.errors import DataError
from spatl.json_files import read_json
from tests.support.own_data import own_config, serve_devices, write_data


def config_with(path, **sections):
    return own_config(report={"test_data": str(path)}, training={"batch_norm": "aggregated"}, **sections)


@pytest.mark.slow
@pytest.mark.parametrize("classes", [(0, 1, 2, 3), (1, 3)])
def test_the_servers_model_is_measured_on_all_of_them(devices, tmp_path, classes):
    """By hand: the model's file, the scale and the order of classes that the devices agreed on, and argmax."""
    write_data(tmp_path / "test.npz", 60, classes, seed=9)
    summary = serve_devices(config_with(tmp_path / "test.npz"), devices)
    agreed = load_config(devices / "run" / "config.yaml").data.agreed.agreement()
    with as_found():
        found = load_dataset("npz", seed=1, options={"path": str(tmp_path / "test.npz")})
    inputs = torch.from_numpy(agreed.normalisation.apply(found.images.numpy()))
    names = torch.tensor([int(found.class_names[label]) for label in found.targets])
    with torch.no_grad():
        right = read_model(devices / "run").network(inputs).argmax(1) == names
    assert agreed.classes == ("0", "1", "2", "3")
    assert (summary["global_examples"], summary["global_accuracy"]) == (60, float(right.double().mean()))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["missing", "class", "shape"])
def test_one_that_does_not_fit_is_one_line_before_the_first_round(devices, tmp_path, kind):
    path = tmp_path / "test.npz"
    if kind == "class":
        np.savez(path, images=np.zeros((4, 8, 8), np.uint8), labels=np.array([0, 1, 7, 7]))
    elif kind == "shape":
        write_data(path, 60, range(4), size=12)
    line = {"missing": "no file", "class": "none of those", "shape": "the clients have agreed on 1 x 8 x 8"}[kind]
    with pytest.raises(DataError, match=f"^report.test_data: .*{line}"):
        serve_devices(config_with(path), devices)
    history = devices / "run" / "history.jsonl"
    assert not history.exists() or not history.read_text()


@pytest.mark.slow
def test_without_a_file_the_summary_says_nothing_of_it(devices):
    serve_devices(own_config(rounds=1), devices)
    assert "global_accuracy" not in read_json(devices / "run" / "summary.json")


def test_it_is_read_where_devices_have_data_of_their_own_alone():
    elsewhere = parse_config({"report": {"test_data": "test.npz"}})
    assert list(settings_without_effect(elsewhere, given=("report.test_data",))) == ["report.test_data"]
    own = parse_config({"data": {"name": "npz"}, "partition": {"name": "own"}, "report": {"test_data": "test.npz"}})
    assert not settings_without_effect(own, given=("report.test_data",))
