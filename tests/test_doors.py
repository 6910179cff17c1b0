"""Parts of the user's own by `package.module:name`, from a command line, with a module beside the config."""

import sys
from pathlib import Path

import pytest
import yaml

from spatl.console.main import main
from spatl.runs.records import read_lines
from tests.support.federations import tiny_config

MODULE = '''
import torch
from spatl.methods import Method
from spatl.wire.quantised import Int8


def choose(request):
    return request.update.new_zeros(request.costs.layout.num_channels).index_add_(
        0, request.costs.layout.owner, request.update.square()
    )


class Short(Int8):
    """Its facts, length and bytes are int8's."""


def squares(seed):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(300) % 3
    images = torch.rand(300, 8, 8, generator=generator)
    images[:, :4] += labels[:, None, None]
    return images, labels


def turns(labels, num_clients):
    return [torch.arange(client, len(labels), num_clients) for client in range(num_clients)]


def middle(updates):
    return updates.nanmedian(dim=0).values


def brighter(inputs, generator):
    return inputs + torch.rand((), generator=generator)


def doubled(outputs, targets):
    return 2 * torch.nn.functional.cross_entropy(outputs, targets)


def surest(outputs, targets):
    return outputs.softmax(1).max()


OWN = Method(title="Own", source="a test", shares="encoder", selects=True, keep_ratio=0.5)
A_NUMBER = 3
'''
DOORS = {
    "selection.selector": ("choose", "selector"),
    "wire.uplink": ("Short", "codec"),
    "wire.downlink": ("Short", "codec"),
    "data.name": ("squares", "data set"),
    "partition.name": ("turns", "partitioner"),
    "server.aggregation": ("middle", "aggregation rule"),
    "method": ("OWN", "method"),
    "training.augmentation": ("brighter", "augmentation"),
    "task.loss": ("doubled", "loss"),
    "task.metrics": ("surest", "metric"),
}
"""The setting of each door, what goes in, and what messages call it."""


@pytest.fixture
def beside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory with the module `parts_of_mine`, in which one starts."""
    (tmp_path / "parts_of_mine.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "parts_of_mine", raising=False)
    return tmp_path


def started(directory: Path, command: str, *settings: str) -> int:
    """Write the config of a small run, and start a command with some settings over it."""
    config = directory / "config.yaml"
    values = tiny_config(rounds=2, selection={"selector": "magnitude"}, method="spatl-no-control").model_dump(
        mode="json"
    )
    config.write_text(yaml.safe_dump(values))
    out = ["--out", str(directory / "run")] if command == "run" else []
    overrides = [word for setting in settings for word in ("--set", setting)]
    return main([command, str(config), *out, *overrides])


@pytest.mark.parametrize(
    "settings",
    [*(pytest.param((door,), marks=pytest.mark.slow) for door in DOORS), tuple(DOORS)],
    ids=lambda doors: "+".join(doors),
)
def test_a_run_with_a_module_beside_the_config(beside: Path, settings: tuple[str, ...]) -> None:
    """Through each door alone, and through all at once."""
    assert started(beside, "run", *(f"{door}=parts_of_mine:{DOORS[door][0]}" for door in settings)) == 0
    rows = read_lines(beside / "run" / "history.jsonl")
    assert [row["round"] for row in rows] == [1, 2]
    assert all(row["rejected"] == 0 and row["participants"] > 0 for row in rows)
    written = yaml.safe_load((beside / "run" / "config.yaml").read_text())
    for door in settings:
        section, _, key = door.rpartition(".")
        given = f"parts_of_mine:{DOORS[door][0]}"
        assert (written[section] if section else written)[key] in (given, [given])


@pytest.mark.slow
@pytest.mark.parametrize("command", ["run", "check"])
@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize(
    ("reference", "line"),
    [
        ("parts_of_nobody:thing", "no module named 'parts_of_nobody': is it installed, or its folder on PYTHONPATH?"),
        ("parts_of_mine:{name}x", "module 'parts_of_mine' has no '{name}x' (did you mean '{name}'?)"),
        ("parts_of_mine:A_NUMBER", "'A_NUMBER' must be"),
        (":{name}", "of your own is written \"package.module:"),
    ],
)  # fmt: skip
def test_what_is_not_there_or_is_another_thing_is_one_line_and_nothing_is_written(
    beside: Path, capsys: pytest.CaptureFixture[str], command: str, door: str, reference: str, line: str
) -> None:
    name, noun = DOORS[door]
    assert started(beside, command, f"{door}={reference.format(name=name)}") == 2
    error = capsys.readouterr().err
    assert line.format(name=name) in error
    assert noun in error
    assert error.count("\n") == 1
    assert not (beside / "run").exists()


@pytest.mark.parametrize("door", DOORS)
def test_an_unknown_name_says_that_one_of_your_own_may_stand_there(
    beside: Path, capsys: pytest.CaptureFixture[str], door: str
) -> None:
    assert started(beside, "check", f"{door}=nothing-like-it") == 2
    assert '"package.module:' in capsys.readouterr().err
