"""Files, overrides and what a run is given: read in the right order, or one clear line."""

from pathlib import Path

import pytest

from spatl.config.experiment import ExperimentConfig
from spatl.config.loading import config_from_run, load_config, parse_config
from spatl.errors import ConfigError

CONFIGS = sorted(Path(__file__).parents[3].glob("configs/**/*.yaml"))


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text("rounds: 7\ntraining: {learning_rate: 0.2}\n")
    return path


@pytest.mark.parametrize("shipped", CONFIGS, ids=lambda path: path.name)
def test_every_shipped_config_is_valid(shipped):
    load_config(shipped)


def test_overrides_win_over_the_file_and_the_file_over_defaults(path):
    config = load_config(
        path, ["seed=9", "training.momentum=0.9", "model.options={width: 0.5}", "selection.keep_ratio=1e-1"]
    )
    assert (config.rounds, config.seed) == (7, 9)
    assert (config.training.learning_rate, config.training.momentum) == (0.2, 0.9)
    assert config.model.options == {"width": 0.5}
    assert config.budget().limit == 0.1
    assert config.training.batch_size == ExperimentConfig().training.batch_size


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("partition.name=label", "partition.name: unknown name 'label' (did you mean 'labels'?)"),
        ("partition.labels_per_client=0", "partition.labels_per_client: input should be greater than or equal to 1"),
        ("partition.feature_noise=-0.1", "partition.feature_noise: input should be greater than or equal to 0"),
        ("partition.feature_noise=true", "partition.feature_noise: must be a number, got true"),
        ("roundss=3", "roundss: unknown key (did you mean 'rounds'?); the top level takes seed, rounds, method"),
        (
            "training.learning_rat=1",
            "training.learning_rat: unknown key (did you mean 'learning_rate'?); training takes",
        ),
        ("training.learning_rate=-1", "training.learning_rate: input should be greater than 0, got -1"),
        ("training.learning_rate=.nan", "training.learning_rate: input should be a finite number, got nan"),
        ("method=spatle", "method: unknown name 'spatle' (did you mean 'spatl'?); known: spatl, spatl-no-selection"),
        ("model.name=resnet21", "model.name: unknown name 'resnet21'"),
        ("data.name=digit", "data.name: unknown name 'digit' (did you mean 'digits'?)"),
        (
            "selection.selector=best",
            "selection.selector: unknown name 'best'; known: agent, all, able, random, magnitude, drawn, ",
        ),
        ("wire.uplink=gzip", "wire.uplink: unknown name 'gzip'; known: float32"),
        ("engine=cloud", "engine: input should be 'inline' or 'ray', got 'cloud'"),
        ("selection.keep_ratio=1.3", "selection.keep_ratio: input should be less than or equal to 1, got 1.3"),
        (
            "selection={keep_ratio: 0.5, flops_ratio: 0.5}",
            "selection: set one of keep_ratio, flops_ratio, uplink_bytes",
        ),
        ("training.device=tpu", "training.device: must be auto, cpu, cuda, cuda:N or mps"),
        ("predictor.mode=private", "predictor.mode: input should be 'local', 'calibrated'"),
        ("predictor.smoothing=0", "predictor.smoothing: input should be greater than 0, got 0"),
        ("predictor.strength=-1", "predictor.strength: input should be greater than or equal to 0, got -1"),
        ("training={nesterov: true, momentum: 0}", "training: nesterov needs momentum > 0"),
        ("partition.num_clients=0", "partition.num_clients: input should be greater than or equal to 1, got 0"),
        ("training=5", "training: expected keys and values, got 5"),
        ("training.device=auto:1", "training.device: must be auto, cpu, cuda, cuda:N or mps"),
        ("rounds=true", "rounds: must be a number, got true"),
        ("server.min_replies=30", "server.min_replies is 30, but a round has 20 clients"),
        ("seed=2024-13-45", "--set seed: '2024-13-45' is not a YAML value"),
        ("seed", "--set expects section.key=value, got 'seed'"),
        ("rounds.deep=1", "--set rounds.deep: rounds is a value, not a section"),
        ("seed={", "--set seed: '{' is not a YAML value"),
        ("training={momentum: 0.1, momentum: 0.2}", "--set training: momentum stands twice, in line 1; keep one"),
    ],
)
def test_a_mistake_is_one_line_that_names_the_key(path, override, message):
    with pytest.raises(ConfigError) as caught:
        load_config(path, [override])
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("- a\n- b\n", "expected keys and values at the top level"),
        ("a: [", "is not valid YAML"),
        ("\x00", "not valid YAML"),
        ("seed: 2024-13-45", "not valid YAML"),
        (
            "training: {momentum: 0.5}\nseed: 1\ntraining: {local_epochs: 1}\n",
            "training stands twice, in lines 1 and 3",
        ),
    ],
)
def test_a_file_that_is_no_config_is_one_line(tmp_path, content, message):
    path = tmp_path / "bad.yaml"
    path.write_text(content)
    with pytest.raises(ConfigError, match=message) as caught:
        load_config(path)
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"config file not found: .*nowhere\.yaml"):
        load_config(tmp_path / "nowhere.yaml")


def test_an_empty_file_is_all_defaults(tmp_path):
    path = tmp_path / "empty.yaml"
    path.write_text("# nothing\n")
    assert load_config(path) == ExperimentConfig()


def test_flowers_run_config_holds_json_or_a_path():
    config = parse_config({"seed": 5})
    assert config_from_run({"config": config.to_json(), "out": ""}) == config
    quickstart = next(path for path in CONFIGS if path.name == "quickstart.yaml")
    assert config_from_run({"config": "configs/quickstart.yaml"}) == load_config(quickstart)
    with pytest.raises(ConfigError, match="the run has no config"):
        config_from_run({"config": ""})
    with pytest.raises(ConfigError, match="not valid JSON"):
        config_from_run({"config": "{oops"})
    with pytest.raises(ConfigError, match="the run's config: momentum stands twice in one section; keep one"):
        config_from_run({"config": '{"training": {"momentum": 0.1, "batch_size": 8, "momentum": 0.2}}'})


def test_of_two_overrides_of_one_setting_the_last_counts(path):
    assert load_config(path, ["seed=1", "seed=2"]).seed == 2
