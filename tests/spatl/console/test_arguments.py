"""The parser of the command line: every mistake is one line, and says what would be right."""

import pytest

from spatl.config.settings import setting_keys
from spatl.console.main import main
from spatl.console.parser import make_parser


@pytest.mark.parametrize(
    ("arguments", "advice"),
    [
        (["run", "quickstart", "--rounds", "5"], "use --set rounds=5"),
        (["run", "--rounds", "5", "quickstart"], "use --set rounds=5"),
        (["run", "quickstart", "--rounds=5"], "use --set rounds=5"),
        (["run", "quickstart", "--seed", "5"], "use --set seed=5"),
        (["run", "quickstart", "--lr", "0.1"], "use --set training.learning_rate=0.1"),
        (["run", "quickstart", "--clients", "3"], "use --set partition.num_clients=3"),
        (["run", "quickstart", "--num_clients", "3"], "use --set partition.num_clients=3"),
        (["run", "quickstart", "--epochs", "1"], "use --set training.local_epochs=1"),
        (["run", "quickstart", "--method", "fedavg"], "use --set method=fedavg"),
        (["run", "quickstart", "--device", "cuda:0"], "use --set training.device=cuda:0"),
        (["run", "quickstart", "--batch-size", "8"], "use --set training.batch_size=8"),
        (["run", "quickstart", "--keep-ratio", "0.4"], "use --set selection.keep_ratio=0.4"),
        (["run", "quickstart", "--training.momentum", "0.9"], "use --set training.momentum=0.9"),
        (["run", "quickstart", "--model", "my net"], "use --set 'model.name=my net'"),
        (["run", "quickstart", "--num-clients"], "use --set partition.num_clients=VALUE"),
        (["run", "quickstart", "--clip", "3"], "use --set server.clip=3 or --set privacy.clip=3"),
        (["run", "quickstart", "--rounds", "5", "--lr", "1"], "use --set rounds=5 --set training.learning_rate=1"),
        (["bench", "bench/digits", "--alpha", "0.1"], "use --set partition.alpha=0.1"),
        (["partition", "bench/digits", "--alpha", "0.1"], "use --set partition.alpha=0.1"),
        (["deploy", "init", "dir", "quickstart", "--rounds", "5"], "use --set rounds=5"),
        (["run", "quickstart", "rounds=5"], "use --set rounds=5"),
        (["run", "quickstart", "--output-dir", "x"], "--output-dir is called --out here"),
        (["run", "quickstart", "--reusme", "x"], "did you mean '--resume'?"),
        (["status", "x", "--rounds", "5"], "unknown option --rounds"),
        (
            ["run", "quickstart", "--name", "fedavg"],
            "--set data.name=fedavg or --set task.name=fedavg or --set partition.name=fedavg",
        ),
        (["run", "a", "b"], "unexpected argument b"),
        (["runn"], "invalid choice: 'runn'"),
        ([], "the following arguments are required: COMMAND"),
    ],
)
def test_a_mistake_is_one_line_that_says_what_would_be_right(arguments, advice, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(arguments)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert captured.err.startswith("spatl")
    assert advice in captured.err


# Options of `spatl run`, and words that mean another section's setting to most people.
TAKEN = {"--engine", "--seeds", "--learning-rate", "--name", "--options", "--clients", "--epochs"}


@pytest.mark.slow
@pytest.mark.parametrize("key", setting_keys())
def test_every_setting_given_as_a_flag_is_answered_with_its_key(key, capsys):
    """By its whole key, and by its last word whatever other sections have a key of that name."""
    for flag in {f"--{key}", "--" + key.rpartition(".")[2].replace("_", "-")} - TAKEN:
        with pytest.raises(SystemExit, match="2"):
            make_parser().parse_args(["run", "quickstart", flag, "7"])
        assert f"--set {key}=7" in capsys.readouterr().err


def test_options_are_not_abbreviated(capsys):
    for arguments in (["run", "quickstart", "--eng", "ray"], ["run", "quickstart", "--res", "x"]):
        with pytest.raises(SystemExit, match="2"):
            main(arguments)
        assert "unknown option" in capsys.readouterr().err
