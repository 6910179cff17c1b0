"""Pre-training writes a policy that can be read, in the form that ships too, and the same again with its seed."""

import json

import pytest
import torch

from agents.lab import pretrain as pretraining
from agents.lab.pretrain import SOURCES, Source, pretrain
from agents.policy import load_policy
from spatl.console.main import main
from spatl.models import MODELS

TWO = (Source("cnn", None, 0.0, 1.0), Source("resnet8", 0.25, 1.0, 1.0))


@pytest.mark.slow
def test_a_short_pretraining_repeats_with_its_seed(tmp_path):
    seen = []
    for name in ("a", "b"):
        history = pretrain(
            tmp_path / name, seed=3, steps=64, sources=TWO, on_network=lambda done, total: seen.append((done, total))
        )
        assert history[-1]["steps"] >= 64
    first, again = (load_policy(tmp_path / name / "policy.safetensors").state_dict() for name in ("a", "b"))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert seen[:3] == [(0, 2), (1, 2), (2, 2)]
    assert json.loads((tmp_path / "a" / "pretrain.json").read_text())["seed"] == 3
    assert (tmp_path / "a" / "policy.json").read_text() == (tmp_path / "b" / "policy.json").read_text()


def test_sources_are_several_families_none_of_them_a_resnet20():
    assert {source.model for source in SOURCES} >= {"resnet56", "vgg11", "mobilenet"}
    assert "resnet20" not in {source.model for source in SOURCES}
    assert {source.model for source in SOURCES} <= set(MODELS)


def test_the_commands_defaults_are_those_of_the_shipped_policy():
    from spatl.console.parser import make_parser

    options = make_parser().parse_args(["agent", "pretrain"])
    assert (options.seed, options.steps) == (pretraining.DEFAULT_SEED, pretraining.DEFAULT_STEPS)


def test_a_mistake_is_one_line(tmp_path, capsys):
    assert main(["agent", "pretrain", "--steps", "0", "--out", str(tmp_path / "out")]) == 2
    assert "--steps must be at least 1, got 0" in capsys.readouterr().err
