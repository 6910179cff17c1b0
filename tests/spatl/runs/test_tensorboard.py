"""TensorBoard reads what a run wrote for it."""

import importlib.util
import json

import pytest

from server.engines import run_inline
from spatl.errors import ConfigError
from spatl.runner import run
from spatl.runs.directory import config_of
from tests.support.federations import tiny_config

pytest.importorskip("tensorboard")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_every_round_is_a_point_of_every_scalar(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run_inline(tiny_config(rounds=3, report={"tensorboard": True}), tmp_path)
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    history = [json.loads(line) for line in (tmp_path / "history.jsonl").read_text().splitlines()]
    for name, key in (("accuracy/on arrival", "accuracy"), ("bytes/up", "uplink_bytes"), ("seconds/round", "seconds")):
        points = events.Scalars(name)
        assert [point.step for point in points] == [1, 2, 3]
        assert [point.value for point in points] == pytest.approx([row[key] for row in history], rel=1e-6)
    assert [point.step for point in events.Scalars("accuracy/final")] == [3]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_run_that_goes_on_has_all_its_points_whatever_became_of_the_file_before(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run_inline(tiny_config(rounds=2, report={"tensorboard": True}), tmp_path)
    (before,) = (tmp_path / "tensorboard").iterdir()
    for harm in (lambda: before.write_bytes(before.read_bytes()[:200]), before.unlink):
        harm()
        (tmp_path / "summary.json").unlink()
        run_inline(config_of(tmp_path), tmp_path, resume=True)
        events = EventAccumulator(str(tmp_path / "tensorboard"))
        events.Reload()
        assert [point.step for point in events.Scalars("accuracy/on arrival")] == [1, 2]


def test_without_tensorboard_a_run_that_asks_for_it_is_refused_before_anything_is_written(tmp_path, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "tensorboard" else find(name, *rest)
    )
    with pytest.raises(ConfigError, match=r"report\.tensorboard needs TensorBoard: pip install 'spatl\[tensorboard\]'"):
        run(tiny_config(report={"tensorboard": True}), tmp_path / "run")
    assert not (tmp_path / "run").exists()
