"""Devices with data of their own: it is all theirs, and they agree on a model and a scale."""

import contextlib
from types import SimpleNamespace

import pytest
import torch

from clients.app import app as client_app
from server.app import agreed_selection, serve
from server.grids import InProcessGrid
from spatl.config.loading import load_config, on_device
from spatl.data.own import fit
from spatl.errors import ConfigError
from spatl.json_files import read_json
from spatl.rounds.blueprint import make_blueprint
from spatl.rounds.client_data import load_own
from spatl.runs.directory import write_config
from spatl.runs.records import read_lines
from tests.support.federations import COMPRESSED, blueprint_of, tiny_config
from tests.support.own_data import check_devices_control, own_config, serve_devices, write_data


@pytest.mark.slow
def test_nodes_without_a_place_for_their_state_agree_in_flowers_memory(devices, monkeypatch):
    """As under `flwr run`, where a run's config names no directory."""
    config = own_config(rounds=1)
    grid = InProcessGrid(client_app, num_clients=3, run_config={"config": config.to_json()})
    for context in grid.contexts.values():
        context.node_config["data-dir"] = str(devices / f"{context.node_config['partition-id']}.npz")
    summary = serve(grid, config, devices / "run")
    assert (summary["num_clients"], summary["missing"], summary["rejected"]) == (3, 0, 0)


@pytest.mark.slow
def test_everything_on_a_device_is_its_own_and_split_by_the_fractions(devices):
    """Of 200, 120 and 60 images, 15 % are for validation and 25 % for test: 120, 72 and 36 are left."""
    summary = serve_devices(own_config(), devices)
    numbers = {row["client"]: row["num_examples"] for row in read_lines(devices / "run" / "clients.jsonl")}
    assert numbers == {0: 120, 1: 72, 2: 36}
    assert (summary["missing"], summary["rejected"], summary["num_clients"]) == (0, 0, 3)
    registration = read_json(devices / "run" / "registration.json")
    assert registration.pop("most_bytes") > 64 << 10
    assert registration == {"num_examples": {"0": 120, "1": 72, "2": 36}, "absent": {}}


@pytest.mark.slow
def test_200_and_400_images_are_120_and_240_training_examples(tmp_path):
    for client, number in enumerate((200, 400)):
        write_data(tmp_path / f"{client}.npz", number, range(3), seed=client)
    serve_devices(own_config(partition={"name": "own", "num_clients": 2}, rounds=1), tmp_path)
    numbers = {row["client"]: row["num_examples"] for row in read_lines(tmp_path / "run" / "clients.jsonl")}
    assert numbers == {0: 120, 1: 240}


@pytest.mark.slow
def test_classes_and_scale_are_those_of_all_training_examples_together(devices):
    serve_devices(own_config(rounds=1), devices)
    config = load_config(devices / "run" / "config.yaml")
    agreed = config.data.agreed
    assert agreed.classes == ("0", "1", "2", "3")
    assert agreed.shape == (1, 8, 8)
    images, labels = [], []
    for client in range(3):
        device = on_device(config, data=str(devices / f"{client}.npz"))
        train = make_blueprint(device).client_data(client).train
        images.append(train.inputs)
        labels.append(train.targets)
    together = torch.cat(images).double()
    assert float(together.mean()) == pytest.approx(0.0, abs=1e-7)
    assert float(together.std(unbiased=False)) == pytest.approx(1.0, abs=1e-6)
    assert labels[2].unique().tolist() == [0, 1, 3]  # not numbered anew where class 2 is missing
    # The same pixel is the same number everywhere.
    raw, scaled = set(), set()
    for client in range(3):
        device = on_device(config, data=str(devices / f"{client}.npz"))
        found = load_own(device).inputs.clone()
        fitted = fit(load_own(device), agreed.agreement()).inputs
        raw.add(float(found[found == 37.0][0]))
        scaled.add(float(fitted[found == 37.0][0]))
    assert (raw, len(scaled)) == ({37.0}, 1)


@pytest.mark.slow
def test_the_server_needs_no_data_and_all_build_the_same(devices):
    """Its config's path leads nowhere; that fingerprints agree is checked at registration."""
    config = own_config(data={"name": "npz", "options": {"path": "/nowhere/at/all.npz"}})
    assert serve_devices(config, devices)["num_clients"] == 3


@pytest.mark.slow
def test_registration_is_counted_both_times(devices):
    serve_devices(own_config(rounds=1), devices)
    asked = [
        (row["client"], row["direction"]) for row in read_lines(devices / "run" / "ledger.jsonl")
        if row["phase"] == "query"
    ]  # fmt: skip
    assert sorted(asked) == sorted((client, way) for client in range(3) for way in ("downlink", "uplink") * 2)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["spatl", "ssfl", "fedrep"])
def test_a_federation_of_unequal_devices_learns(devices, method):
    config = own_config(method=method, rounds=8, wire=COMPRESSED, training={"local_steps": None, "local_epochs": 4})
    summary = serve_devices(config, devices)
    assert summary["accuracy"] > 0.8
    assert (summary["missing"], summary["rejected"]) == (0, 0)


@pytest.mark.slow
def test_a_run_that_goes_on_goes_by_what_was_agreed_before(devices):
    config = own_config(rounds=3, method="spatl", wire=COMPRESSED, selection={"selector": "update"})
    serve_devices(config, devices)
    whole = (devices / "run" / "history.jsonl").read_text()
    agreed = load_config(devices / "run" / "config.yaml")
    (devices / "run" / "summary.json").unlink()
    with pytest.raises(ConfigError, match="was run with another config"):
        serve_devices(own_config(rounds=4), devices, resume=True)
    serve_devices(agreed, devices, resume=True)
    assert (devices / "run" / "history.jsonl").read_text() == whole


@pytest.mark.slow
@pytest.mark.parametrize("wire", [{}, COMPRESSED], ids=["dense", "compressed"])
def test_c_stays_the_weighted_sum_of_the_c_i_when_one_comes_later_and_another_stays_away(devices, wire):
    """Client 1 is away for two rounds, comes for two, then client 0 stays away: p_i are shares of all there were."""

    def config_of(rounds, agreed=None):
        config = own_config(method="spatl", rounds=rounds, wire=wire, selection={"selector": "update"})
        return config if agreed is None else config.model_copy(
            update={"data": config.data.model_copy(update={"agreed": agreed})}
        )  # fmt: skip

    serve_devices(config_of(2), devices, absent=[1])
    for rounds, absent in ((4, []), (6, [0])):
        agreed = load_config(devices / "run" / "config.yaml").data.agreed
        write_config(devices / "run", config_of(rounds, agreed))
        with contextlib.suppress(FileNotFoundError):
            (devices / "run" / "summary.json").unlink()
        serve_devices(config_of(rounds, agreed), devices, resume=True, absent=absent)
        check_devices_control(devices, config_of(rounds, agreed), {0: 120, 1: 72, 2: 36})


def test_nobodys_word_for_its_number_decides_alone_which_channels_all_train():
    config = own_config(method="ssfl", partition={"name": "own", "num_clients": 12})
    blueprint = blueprint_of(tiny_config(method="ssfl"))
    worth = torch.linspace(1.0, 2.0, blueprint.layout.num_channels)
    clients = {client: SimpleNamespace(saliency=worth if client else worth.flip(0)) for client in range(12)}

    def agreed(number):
        numbers = {client: 100 if client else number for client in range(12)}
        registered = SimpleNamespace(config=config, clients=clients, num_examples=numbers, blueprint=blueprint)
        return agreed_selection(registered, {}).mask

    assert torch.equal(agreed(10**9), agreed(100))
