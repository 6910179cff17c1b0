"""What the commands say of devices with data of their own."""

import pytest

from spatl.config.loading import load_config, with_agreement
from spatl.console.main import main
from spatl.data.own import Agreement
from tests.support.own_data import own_config, write_data

# The commands


@pytest.mark.slow
@pytest.mark.parametrize("registered", [False, True])
def test_a_simulation_of_devices_own_data_is_refused_in_one_line(tmp_path, registered, capsys):
    """Nor is it run from what a deployment left, in which all is said that its devices have agreed on."""
    write_data(tmp_path / "data.npz", 100, range(4))
    config = own_config(data={"name": "npz", "options": {"path": str(tmp_path / "data.npz")}})
    if registered:
        config = with_agreement(config, Agreement(("0", "1", "2", "3"), (1, 8, 8), (0.0,), (1.0,)))
    (tmp_path / "config.yaml").write_text(config.to_yaml())
    for command in ("run", "partition", "check", "bench"):
        assert main([command, str(tmp_path / "config.yaml")]) == 2
        error = capsys.readouterr().err
        assert "partition.name: own is for devices" in error
        assert error.count("\n") == 1


@pytest.mark.slow
@pytest.mark.parametrize(
    ("partition", "expected", "said"),
    [
        ("partition: {num_clients: 2}", "own", "partition.name: own, for the config names none"),
        ("partition: {name: own, num_clients: 2}", "own", "partition.name: own: what lies on a device"),
        ("partition: {name: iid, num_clients: 2}", "iid", "partition.name: iid: each device gets its share"),
    ],
)
def test_init_takes_own_where_a_config_names_no_partitioner_and_needs_no_data_then(
    tmp_path, partition, expected, said, capsys
):
    write_data(tmp_path / "data.npz", 100, range(4))
    path = "/nowhere.npz" if expected == "own" else str(tmp_path / "data.npz")
    (tmp_path / "c.yaml").write_text(f"data: {{name: npz, options: {{path: {path}}}}}\n{partition}\n")
    assert main(["deploy", "init", str(tmp_path / "federation"), str(tmp_path / "c.yaml")]) == 0
    assert load_config(tmp_path / "federation" / "server" / "config.yaml").partition.name == expected
    assert said in capsys.readouterr().out


def test_data_that_are_generated_lie_on_no_device(tmp_path, capsys):
    (tmp_path / "c.yaml").write_text("data: {name: synthetic}\n")
    assert main(["deploy", "init", str(tmp_path / "federation"), str(tmp_path / "c.yaml")]) == 2
    assert "name a partitioner, e.g. --set partition.name=iid" in capsys.readouterr().err
    assert not (tmp_path / "federation").exists()
