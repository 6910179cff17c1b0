"""`spatl check`: what would run, or why not, and nothing written."""

import pytest

from spatl.console.main import main
from tests.support.terminals import as_terminal, widest_line, words_of


def lines(capsys):
    return dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines()[1:])


@pytest.mark.slow
def test_the_quickstart_is_described_as_it_would_run(capsys, tmp_path, monkeypatch):
    """The network has 22,154 parameters, of four bytes each in float32."""
    monkeypatch.chdir(tmp_path)
    assert main(["check", "quickstart", "--set", "training.device=cpu"]) == 0
    said = lines(capsys)
    assert said["method"].startswith("spatl: SPATL (")
    assert said["rounds"] == "40, with 20 of 20 clients, then each client alone"
    assert said["engine"] == "inline, on cpu, seed 1"
    assert said["data"] == "digits: 1,797 examples of 1 x 8 x 8, 10 classes"
    assert said["clients"].startswith("20, dirichlet (alpha 0.5): 23 to 154 (median 91) examples each, ")
    assert said["model"].endswith("22,154 parameters")
    assert said["encoder"] == "22,154 entries are shared, 88.6 kB in float32"
    assert said["budget"] == "keep_ratio 0.8, the method's, chosen by agent"
    assert said["wire"] == "up adaptive under dither, down adaptive with coarse changes"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("overrides", "row", "text"),
    [
        (["method=fedavg"], "budget", "none: clients send everything"),
        (["method=local"], "channels", "none: nothing is shared"),
        (["method=fedper"], "model", "are each client's own"),
        (["method=ssfl"], "budget", "one choice for all"),
        (["selection.uplink_bytes=9000"], "budget", "uplink_bytes 9000, chosen by"),
        (["selection.clients={1: {keep_ratio: 0.5}}"], "budget", "1 clients have their own"),
        (["server.fraction_train=0.4"], "rounds", "with 2 of 5 clients"),
        (["training.local_steps=7"], "training", "7 steps of batches"),
        (["partition.name=iid"], "clients", "5, iid: "),
        (["wire.rounding=at-random"], "wire", "up adaptive, down adaptive"),
        (["wire.rounding=dither", "wire.downlink_steps=fine"], "wire", "up adaptive under dither, down adaptive"),
    ],
)
def test_what_a_setting_changes_is_said(config_path, overrides, row, text, capsys):
    assert main(["check", config_path, *(part for each in overrides for part in ("--set", each))]) == 0
    assert text in lines(capsys)[row]


@pytest.mark.parametrize(
    ("overrides", "status"),
    [
        (["training.device=cpu"], 2),
        (["training.device=cpu", "engine=ray"], 2),
        (["training.device=auto", "engine=ray"], 0),  # whose machines may have GPUs, which take any network
        (["training.device=cpu", "model.options={width: 1.0}"], 0),
    ],
)
def test_what_clients_would_refuse_to_train_is_refused(config_path, overrides, status, capsys):
    model = ["model.name=resnet8", "model.options={width: 0.5}", "training.memory_format=channels-last"]
    given = [part for each in (*model, *overrides) for part in ("--set", each)]
    assert main(["check", config_path, *given]) == status
    assert ("1x1 convolution with a stride that reads 8 channels" in capsys.readouterr().err) == (status == 2)


def test_a_benchmark_says_how_many_rows_it_has(capsys):
    assert main(["check", "bench/digits"]) == 0
    assert lines(capsys)["benchmark"].endswith("rows, 3 seeds each (spatl bench)")


def test_warnings_stand_at_the_end_and_only_there(config_path, capsys):
    assert main(["check", config_path, "--set", "method=fedavg", "--set", "training.proximal_mu=0.3"]) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    last = captured.out.splitlines()[-1]
    assert last.startswith("warning: training.proximal_mu has no effect")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("selection.keep_ratio=0.001", "selection.keep_ratio is 0.001"),
        ("partition.num_clients=2000", "2000"),
        ("training.device=cuda:99", "training.device is cuda:99, but this machine has"),
        ("model.name=nowhere:Net", "nowhere"),
        ("rounds=none", "rounds: "),
    ],
)
def test_what_would_not_run_is_one_line_and_status_2(config_path, override, message, capsys):
    assert main(["check", config_path, "--set", override]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert message in captured.err


@pytest.mark.parametrize("width", [60, 80, 120])
def test_it_fits_the_terminal(config_path, width, capsys, monkeypatch):
    as_terminal(monkeypatch, width)
    assert main(["check", config_path]) == 0
    text = capsys.readouterr().out
    assert widest_line(text) <= width
    assert "…" not in text
    assert {"encoder", "float32", "channels", "learning"} <= set(words_of(text))
