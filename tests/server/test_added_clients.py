"""Clients that come to a federation that has begun: they are counted and weighted, and c stays the weighted sum."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from server.deployment.adding import with_clients
from spatl.config.loading import load_config
from spatl.json_files import read_json
from spatl.rounds.downlink import Versions
from spatl.rounds.members import rejoined
from spatl.rounds.server_state import ServerState
from spatl.runs.directory import write_config
from spatl.runs.records import read_lines
from spatl.seeding import numpy_generator
from tests.support.federations import COMPRESSED, DENSE
from tests.support.own_data import check_devices_control, own_config, serve_devices, write_data

EXAMPLES = {0: 120, 1: 72, 2: 36}


def grown(base, *, num_clients, rounds):
    """The config of a run that is to go on with more clients, to more rounds; it stands in the run's directory."""
    config = load_config(base / "run" / "config.yaml").model_copy(update={"rounds": rounds})
    config = with_clients(config, num_clients)
    write_config(base / "run", config)
    (base / "run" / "summary.json").unlink(missing_ok=True)
    return config


@pytest.mark.slow
@pytest.mark.parametrize(
    "sections",
    [
        {"wire": COMPRESSED},
        {"wire": DENSE},
        {"wire": COMPRESSED, "control": {"downlink": "sent"}},
        {"wire": COMPRESSED, "control": {"half_life": 2.0}, "server": {"fraction_train": 0.5}},
    ],
    ids=str,
)
def test_c_stays_the_weighted_sum_of_the_c_i_when_clients_are_added_once_and_again(devices, sections):
    """One after two rounds, with 60 training examples of 100; after four two more, with 30 and 18."""
    server = {"connect_timeout_seconds": 0.2, **sections.get("server", {})}
    values = {"method": "spatl", "selection": {"selector": "update"}, **sections, "server": server}
    serve_devices(own_config(rounds=2, **values), devices)
    check_devices_control(devices, load_config(devices / "run" / "config.yaml"), EXAMPLES)
    for client, number in {3: 100, 4: 50, 5: 30}.items():
        write_data(devices / f"{client}.npz", number, range(4), seed=client)
    for num_clients, rounds, more in ((4, 4, {3: 60}), (6, 7, {3: 60, 4: 30, 5: 18})):
        config = grown(devices, num_clients=num_clients, rounds=rounds)
        summary = serve_devices(config, devices, resume=True)
        check_devices_control(devices, config, {**EXAMPLES, **more})
        assert (summary["num_clients"], summary["missing"], summary["rejected"]) == (num_clients, 0, 0)
        assert (summary["not_evaluated"], summary["rounds"]) == (0, rounds)


@pytest.mark.slow
def test_one_that_was_added_is_in_each_round_from_then_on_and_its_registration_in_the_ledger(devices):
    serve_devices(own_config(rounds=2, method="spatl", selection={"selector": "update"}), devices)
    before = read_lines(devices / "run" / "ledger.jsonl")
    write_data(devices / "3.npz", 100, range(4), seed=3)
    summary = serve_devices(grown(devices, num_clients=4, rounds=4), devices, resume=True)
    assert [row["participants"] for row in read_lines(devices / "run" / "history.jsonl")] == [3, 3, 4, 4]
    assert [row["round"] for row in read_lines(devices / "run" / "clients.jsonl") if row["client"] == 3] == [3, 4]
    assert "3" in summary["clients"]
    lines = read_lines(devices / "run" / "ledger.jsonl")[len(before) :]
    asked = [(line["client"], line["round"], line["direction"]) for line in lines if line["phase"] == "query"]
    assert asked == [(3, 3, "downlink"), (3, 3, "uplink")]
    assert read_json(devices / "run" / "registration.json")["num_examples"]["3"] == 60


@given(known=st.lists(st.integers(1, 1000), min_size=1, max_size=5), more=st.lists(st.integers(1, 1000), max_size=4))
def test_new_clients_have_no_part_in_c_and_the_others_parts_shrink_alike(known, more):
    """c is the weighted sum of the c_i before and after, whatever the numbers of examples; c_i of new ones is 0."""
    own = numpy_generator(1, "c_i").normal(size=(len(known), 3))
    weights = np.array(known) / sum(known)
    control = torch.from_numpy(weights @ own).float()
    state = ServerState(
        torch.zeros(3), control, control, 0.5, Versions(0, torch.zeros(0, dtype=torch.int32)), {}, {}, {},
        dict(enumerate(known)),
    )  # fmt: skip
    everyone = dict(enumerate([*known, *more]))
    after = rejoined(state, everyone)
    assert after.num_examples == everyone
    assert after.control is not None
    shares = np.array(known) / sum(everyone.values())
    torch.testing.assert_close(after.control, torch.from_numpy(shares @ own).float())
    assert all(after.held[client] == 0 for client in range(len(known), len(everyone)))
    assert all(after.control_staleness[client] == 1.0 for client in range(len(known), len(everyone)))


@pytest.mark.slow
def test_one_whose_classes_are_others_costs_itself_only(devices):
    serve_devices(own_config(rounds=1), devices)
    write_data(devices / "3.npz", 100, range(4), seed=3)
    data = dict(np.load(devices / "3.npz"))
    np.savez(devices / "3.npz", images=data["images"], labels=data["labels"] + 6)
    summary = serve_devices(grown(devices, num_clients=4, rounds=2), devices, resume=True)
    assert "4 classes of the data here are none of those that the clients have agreed on" in summary["absent"]["3"]
    assert [row["participants"] for row in read_lines(devices / "run" / "history.jsonl")] == [3, 3]
