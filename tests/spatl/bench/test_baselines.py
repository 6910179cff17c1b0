"""Tests of the baselines that a benchmark's rows are held against."""

import pytest

from spatl.bench.baselines import add_ratios, best_of_kind, compressed, published
from spatl.config.loading import parse_config


@pytest.mark.parametrize(
    ("method", "up", "down", "is_compressed", "is_published"),
    [
        ("fedavg", "float32", "float32", False, True),
        ("fedavg", "float16", "float16", True, True),
        ("fedavg", "float32", "adaptive", True, True),  # what comes down may be ours
        ("fedavg", "adaptive", "float32", True, False),
        ("fedavg-calibrated", "adaptive", "adaptive", True, False),
        ("fedavg-calibrated", "eden", "adaptive", True, False),  # whose predictor is ours
        ("fedper", "eden", "eden", True, True),
        ("eden", "eden", "adaptive", True, True),
        ("topk", "topk", "topk", True, True),
        ("fedavg", "int4-entropy", "int4-entropy", True, False),  # whose entropy coder is ours
        ("fedavg", "int4", "int4", True, True),
        ("tests.support.users_parts:ROW", "float16", "float16", False, False),  # a user's own
        ("ssfl", "float32", "float32", True, True),
        ("ssfl", "adaptive", "adaptive", True, False),
        ("spatl", "float16", "float16", False, False),
        ("local", "float16", "float16", False, False),
    ],
)
def test_a_baseline_federates_and_is_not_spatl_and_a_published_one_sends_no_codec_of_ours(
    method, up, down, is_compressed, is_published
):
    config = parse_config({"method": method, "wire": {"uplink": up, "downlink": down}})
    assert (compressed(config), published(config)) == (is_compressed, is_published)


def cost(spent: int | None) -> dict[str, int] | None:
    return None if spent is None else {"bytes": spent}


def record(method: str, held: int | None, *, is_published: bool, seed: int = 1, base: str | None = None):
    return {
        "method": method, "seed": seed, "base_method": base or method, "published": is_published,
        "compressed": method not in ("fedavg", "spatl", "local"), "total_bytes": 1000, "evaluation_bytes": 100,
        "targets": [{"target": 0.8, "held": cost(held), "first_touch": cost(held)}],
    }  # fmt: skip


def test_each_kind_has_its_best_of_the_same_seed_alone():
    records = [
        record("spatl", 50, is_published=False),
        record("fedavg", 400, is_published=True),
        record("adaptive", 60, is_published=False, base="fedavg"),
        record("eden", 150, is_published=True),
        record("topk", None, is_published=True),  # never got there
        record("eden", 10, is_published=True, seed=2),
    ]
    add_ratios(records)
    ours = records[0]["targets"][0]["held"]
    assert (ours["ratio_to_fedavg"], ours["ratio_to_compressed"], ours["ratio_to_published"]) == (8.0, 1.2, 3.0)
    assert (ours["compressed_baseline"], ours["published_baseline"]) == ("adaptive", "eden")
    assert records[2]["targets"][0]["held"]["ratio_to_published"] == 2.5
    assert records[3]["targets"][0]["held"]["ratio_to_published"] == 1.0


def test_there_is_no_ratio_where_no_published_method_got_there():
    records = [
        record("spatl", 50, is_published=False),
        record("adaptive", 60, is_published=False, base="fedavg"),
        record("eden", None, is_published=True),
    ]
    add_ratios(records)
    ours = records[0]["targets"][0]["held"]
    assert (ours["ratio_to_compressed"], ours["ratio_to_published"]) == (1.2, None)
    assert "published_baseline" not in ours


def test_the_best_of_a_kind_is_counted_by_seed():
    records = [
        record("spatl", 50, is_published=False),
        record("eden", 150, is_published=True),
        record("topk", 160, is_published=True),
        record("spatl", 50, is_published=False, seed=2),
        record("eden", 170, is_published=True, seed=2),
        record("topk", None, is_published=True, seed=2),
        record("spatl", 50, is_published=False, seed=3),
        record("topk", 160, is_published=True, seed=3),
        record("spatl", 50, is_published=False, seed=4),  # none got there
    ]
    add_ratios(records)
    assert best_of_kind(records, 0, "held", "published") == {"eden": 2, "topk": 1}
    assert best_of_kind(records[-1:], 0, "held", "published") == {}
