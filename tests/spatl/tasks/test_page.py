"""What `docs/tasks.md` says is run, and is what the code says."""

import contextlib
import io
import re
from pathlib import Path

import pytest
import torch

from spatl.tasks.losses import LOSSES
from spatl.tasks.metrics import DEFAULT_METRICS, METRICS
from spatl.tasks.task import make_task
from spatl.wire.measures import Judging

PAGE = (Path(__file__).parents[3] / "docs" / "tasks.md").read_text()


@pytest.mark.slow
def test_its_example_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """R2 of all examples is above that of their mean, 0, and the model returns values near the targets."""
    monkeypatch.chdir(tmp_path)
    (code, *_) = re.findall(r"```python\n(.*?)```", PAGE, re.S)
    said, names = io.StringIO(), {}
    with contextlib.redirect_stdout(said):
        exec(code, names)
    metric, score, pooled = said.getvalue().split()
    assert metric == "mae"
    assert float(pooled) > 0.8
    with torch.no_grad():
        found = names["values"](torch.zeros(1, 6))
    assert found.shape == (1, 2)
    assert float((found - 1000).abs().max()) < 5 * float(score) + 50


def test_its_table_has_the_losses_and_metrics_of_each_task() -> None:
    rows = re.findall(r"^\| `([\w-]+)` \|.*\| `([\w-]+)` \| (`.*`) \|$", PAGE, re.M)
    assert {task: (loss, tuple(re.findall(r"`([\w-]+)`", metrics))) for task, loss, metrics in rows} == {
        task: (next(iter(LOSSES[task])), DEFAULT_METRICS[task]) for task in LOSSES
    }


def test_its_bytes_are_those_of_the_wire() -> None:
    """For seven outputs."""
    table = PAGE.partition("| metric | bytes |")[2].partition("\n\n")[0]
    said = {
        metric: eval(form.replace(" K", " * K"), {"K": 7})
        for names, form in re.findall(r"^\| (`.*`) \| (.*) \|$", table, re.M)
        for metric in re.findall(r"`([\w-]+)`", names)
    }
    for task, metrics in METRICS.items():
        for name in metrics:
            other = next(each for each in metrics if each != name)  # accuracy alone sends nothing
            assert Judging(make_task(task, metrics=[name, other]), 7).num_bytes == said[name] + said[other]
    assert said.keys() == {name for metrics in METRICS.values() for name in metrics}
