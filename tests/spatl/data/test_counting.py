"""Counts of a partition by what clients can differ in, worked out by hand for each task."""

import numpy as np
import pytest
import torch

from spatl.console.main import main
from spatl.data import Dataset
from spatl.data.counting import count_kinds
from spatl.data.normalisation import Normalisation

PARTS = [torch.tensor([0, 1, 2]), torch.tensor([3])]
INPUTS = torch.zeros(4, 2)


def test_classes_are_counted_and_add_up():
    kinds = count_kinds(Dataset("some", INPUTS, torch.tensor([0, 1, 1, 0]), num_classes=2), PARTS)
    assert (kinds.noun[1], kinds.names) == ("classes", ("0", "1"))
    assert (kinds.counts.tolist(), kinds.sizes.tolist()) == ([[1, 2], [1, 0]], [3, 1])


def test_an_example_counts_for_each_label_that_it_has():
    labels = torch.tensor([[1.0, 1.0], [0.0, 1.0], [0.0, 0.0], [1.0, 0.0]])
    data = Dataset("some", INPUTS, labels, num_classes=2, class_names=("sun", "rain"), task="multi-label")
    kinds = count_kinds(data, PARTS)
    assert (kinds.noun[0], kinds.names) == ("label", ("sun", "rain"))
    assert (kinds.counts.tolist(), kinds.sizes.tolist()) == ([[1, 2], [1, 0]], [3, 1])


def test_values_of_a_regression_are_counted_by_tenths_in_their_own_unit():
    """Twenty values 0 to 19, as (value - 10) / 2: two in each tenth; the first client has the lowest five."""
    values = (torch.arange(20.0)[:, None] - 10) / 2
    scale = Normalisation((10.0,), (2.0,), "feature")
    data = Dataset("some", torch.zeros(20, 1), values, num_classes=1, task="regression", target_scale=scale)
    kinds = count_kinds(data, [torch.arange(5), torch.arange(5, 20)])
    assert kinds.names[:3] == ("0 to 1", "2 to 3", "4 to 5")
    assert kinds.counts[0].tolist() == [2, 2, 1, 0, 0, 0, 0, 0, 0, 0]
    assert kinds.counts.sum(axis=0).tolist() == [2] * 10


def test_sequences_of_tokens_are_of_one_kind():
    tokens = torch.ones(4, 3, dtype=torch.int64)
    data = Dataset("some", tokens, tokens, num_classes=2, num_tokens=2, task="next-token")
    kinds = count_kinds(data, PARTS)
    assert (kinds.names, kinds.counts.tolist()) == (("sequences",), [[3], [1]])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("task", "targets", "data"),
    [
        ("regression", np.arange(60.0), "1 target"),
        ("multi-label", np.tile([[1.0, 0.0], [1.0, 1.0]], (30, 1)), "2 labels"),
    ],
)
def test_partition_and_check_show_other_tasks(tmp_path, capsys, task, targets, data):
    np.savez(tmp_path / "data.npz", inputs=np.random.default_rng(0).random((60, 3), np.float32), targets=targets)
    config = tmp_path / "config.yaml"
    config.write_text(
        f"task: {{name: {task}}}\ndata: {{name: npz, options: {{path: {tmp_path / 'data.npz'}}}}}\n"
        "partition: {name: iid, num_clients: 3}\nmodel: {name: mlp}\n"
    )
    assert main(["partition", str(config), "--out", str(tmp_path / "picture.png")]) == 0
    lines = capsys.readouterr().out.splitlines()
    rows = {line.split()[0]: line.split()[1:] for line in lines if line.split()}
    assert rows["all"][-4] == "60"  # not the number of labels
    assert (tmp_path / "picture.png").stat().st_size > 10_000
    assert main(["check", str(config)]) == 0
    told = capsys.readouterr().out
    assert data in told
    assert f"{task}, trained on" in told
