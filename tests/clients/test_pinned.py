"""A run stays what it was when a device registered for it, as long as it has its name."""

import json

import pytest
from flwr.app import ConfigRecord, Message, RecordDict

from clients.app import app
from clients.pinned import check_last, check_not_over, check_pinned, pin
from server.grids import InProcessGrid
from spatl.config.loading import config_from_json, parse_config
from spatl.errors import DamagedState, NotAllowed
from spatl.runs.directory import config_of
from spatl.wire.blob import CLIENT_REFUSED, RECORD
from tests.support.federations import tiny_config
from tests.support.own_data import CLASSES, NUMBERS, own_config, serve_devices, write_data
from tests.support.owned import RUN, Case, context_of, register, told

CHANGES = {
    "method": ({"method": "fedavg"}, "fedavg", "spatl"),
    "wire.uplink": ({"wire": {"uplink": "float32"}}, "float32", "adaptive"),
    "training.batch_norm": ({"training": {"batch_norm": "local"}}, "local", "aggregated"),
    "selection.keep_ratio": ({"selection": {"keep_ratio": 1.0}}, "1.0", "None"),
    "rounds": ({"rounds": 2}, "2", "3"),
    "partition.num_clients": ({"partition": {"num_clients": 6}}, "6", "5"),
}
KINDS = ("query", "train", "evaluate", "query.statistics", "query.findings")


def answer_to(context, kind):
    message = Message(RecordDict({RECORD: ConfigRecord({})}), dst_node_id=2, message_type=kind)
    return told(app(message, context))


@pytest.mark.parametrize("setting", CHANGES)
def test_another_config_under_the_name_of_a_run_is_refused_by_every_message(tmp_path, setting):
    assert "fingerprint" in told(register(context_of(Case({}), tmp_path))[0])
    kept = (tmp_path / "state" / RUN / "pinned.json").read_bytes()
    sections, now, before = CHANGES[setting]
    line = f"{setting}: this run asks for {now} under its name, this device registered for {before}"
    other = context_of(Case({}), tmp_path)
    other.run_config["config"] = tiny_config(**sections).to_json()
    for kind in KINDS:
        answer = answer_to(other, kind)
        reason = answer["refused"] if kind == "query" else answer["error"]
        assert line in reason
        assert kind == "query" or answer["code"] == CLIENT_REFUSED
    assert (tmp_path / "state" / RUN / "pinned.json").read_bytes() == kept
    assert [path.name for path in (tmp_path / "state" / RUN).iterdir()] == ["pinned.json"]
    other.run_config["run"] = "20260102-000000-ab"
    assert "fingerprint" in told(register(other)[0])  # which is another run


def test_a_device_does_nothing_for_a_run_that_it_has_not_registered_for(tmp_path):
    InProcessGrid(app, num_clients=1, run_config={})
    context = context_of(Case({}), tmp_path)
    for kind in KINDS[1:]:
        assert "this device has not registered for this run" in answer_to(context, kind)["error"]


def test_a_run_may_have_more_rounds_and_is_pinned_with_those(tmp_path):
    register(context_of(Case({}), tmp_path))
    assert "fingerprint" in told(register(context_of(Case({"rounds": 9}), tmp_path))[0])
    assert "rounds: this run asks for 3" in told(register(context_of(Case({}), tmp_path))[0])["refused"]
    path = tmp_path / "state" / RUN / "pinned.json"
    assert json.loads(path.read_text())["rounds"] == 9
    assert path.stat().st_mode & 0o777 == 0o600


def test_a_pin_that_is_damaged_is_one_line(tmp_path):
    register(context_of(Case({}), tmp_path))
    for content in (b"\xff", b'{"rounds": '):
        (tmp_path / "state" / RUN / "pinned.json").write_bytes(content)
        with pytest.raises(DamagedState, match=r"pinned\.json of this run is damaged: delete the run's state"):
            check_pinned(tmp_path / "state" / RUN, tiny_config(), trained=lambda: True)


def test_a_device_is_evaluated_after_the_last_round_alone_and_goes_on_from_there_or_one_before(tmp_path):
    check_not_over(tmp_path, 1, 30)
    with pytest.raises(NotAllowed, match="an evaluation is asked for after round 3, and this run has 20 rounds"):
        check_last(tmp_path, 3, parse_config({"rounds": 20}))
    check_not_over(tmp_path, 4, 30)  # nothing was kept of it
    check_last(tmp_path, 20, parse_config({"rounds": 20}))
    check_last(tmp_path, 20, parse_config({"rounds": 20}))  # a server that was killed asks again
    for number in (19, 20, 21):
        check_not_over(tmp_path, number, 30)
    with pytest.raises(NotAllowed, match="round 18 is asked for after the evaluation of round 20, the last one"):
        check_not_over(tmp_path, 18, 30)
    check_last(tmp_path, 30, parse_config({"rounds": 30}))  # more rounds
    with pytest.raises(NotAllowed, match="after the evaluation of round 30"):
        check_not_over(tmp_path, 20, 30)


def test_a_device_trains_no_rounds_that_the_run_does_not_have(tmp_path):
    check_not_over(tmp_path, 20, 20)
    for number in (0, 21):
        with pytest.raises(NotAllowed, match=f"round {number} is asked for, and this run has 20 rounds"):
            check_not_over(tmp_path, number, 20)


def agreed(**values):
    base = {"classes": ["0", "1"], "shape": [1, 8, 8], "means": [0.0], "deviations": [1.0]}
    return {"name": "npz", "agreed": {**base, **values}}


def own(**sections):
    return parse_config({"partition": {"name": "own", "num_clients": 3}, "data": {"name": "npz"}, **sections})


def test_clients_may_come_where_each_has_data_of_its_own(tmp_path):
    pin(tmp_path, own(data=agreed()))
    check_pinned(tmp_path, own(data=agreed(), partition={"name": "own", "num_clients": 4}), trained=lambda: True)
    with pytest.raises(NotAllowed, match=r"partition\.num_clients: this run asks for 2 under its name"):
        check_pinned(tmp_path, own(data=agreed(), partition={"name": "own", "num_clients": 2}), trained=lambda: True)


def test_what_the_clients_agreed_on_may_change_before_the_device_has_trained_only(tmp_path):
    pin(tmp_path, own(data=agreed()))
    other = own(data=agreed(means=[0.5]))
    check_pinned(tmp_path, other, trained=lambda: False, registering=True)
    with pytest.raises(NotAllowed, match=r"data\.agreed\.means"):  # nobody looked at what it asks for
        check_pinned(tmp_path, other, trained=lambda: False)
    with pytest.raises(NotAllowed, match=r"data\.agreed\.means: this run asks for \[0\.5\] under its name"):
        check_pinned(tmp_path, other, trained=lambda: True, registering=True)
    check_pinned(tmp_path, own(), trained=lambda: True, registering=True)  # the first of two questions


@pytest.mark.slow
def test_a_run_that_goes_on_to_more_rounds_is_the_same_to_its_devices_and_another_is_not(tmp_path):
    for client, (number, classes) in enumerate(zip(NUMBERS, CLASSES, strict=True)):
        write_data(tmp_path / f"{client}.npz", number, classes, seed=client)
    serve_devices(own_config(rounds=2), tmp_path)
    longer = config_of(tmp_path / "run").model_copy(update={"rounds": 3})
    (tmp_path / "run" / "config.yaml").write_text(longer.to_yaml())
    (tmp_path / "run" / "marks.json").unlink()  # which are of the config as it was
    assert serve_devices(longer, tmp_path, resume=True)["rejected"] == 0
    changed = json.loads(longer.to_json())
    changed["data"]["agreed"]["means"] = [0.0]
    with pytest.raises(Exception, match=r"data\.agreed\.means: this run asks for \[0\.0\] under its name"):
        serve_devices(config_from_json(json.dumps(changed)), tmp_path, run=tmp_path / "other", strict=True)
