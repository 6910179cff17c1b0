"""Baselines of a benchmark's rows: what each row's bytes are held against, seed by seed.

Three of them: FedAvg in float32; the best of all baselines that send less; and the best of those with neither a codec
upwards nor a predictor of this product, so that nothing of ours is taken for what others have published.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any, Final

from spatl.bench.costs import HELD_ROUNDS
from spatl.bench.plan import ALONE, REFERENCE
from spatl.config.experiment import ExperimentConfig
from spatl.extensions.references import is_reference
from spatl.wire.codecs import CODECS

CRITERIA: Final = {"held": f"held for {HELD_ROUNDS} rounds", "first_touch": "first touch"}
_OWN_CODECS: Final = frozenset({"adaptive", "dithered", "int8-entropy", "int4-entropy", "ternary-entropy"})
_PUBLISHED_CODECS: Final = frozenset(CODECS) - _OWN_CODECS
KINDS: Final = ("compressed", "published")
_RATIOS: Final = (
    "ratio_to_fedavg", "ratio_to_fedavg_at_least", "bytes_over_fedavg", *(f"ratio_to_{kind}" for kind in KINDS)
)  # fmt: skip


def compressed(config: ExperimentConfig) -> bool:
    """Return whether a run is a baseline for compression: it sends less than float32 encoders, by others' method."""
    wire = config.wire
    return _is_others(config) and (config.row.budgeted or (wire.uplink, wire.downlink) != ("float32", "float32"))


def published(config: ExperimentConfig) -> bool:
    """Return whether a run is of a method that others published.

    Neither is its method or its codec upwards ours or a user's, nor its predictor of the config's choice
    (`predictor.mode`). Codecs with this product's entropy coder count as ours. What comes down may be in any codec of
    this product, which makes the baseline stronger than its paper.
    """
    return _is_others(config) and config.row.shares != "chosen" and config.wire.uplink in _PUBLISHED_CODECS


def _is_others(config: ExperimentConfig) -> bool:
    """Whether a run is a federation by a method that is neither SPATL nor a user's own."""
    return config.row.baseline and config.row.shares != "nothing" and not is_reference(config.method)


def add_ratios(records: Sequence[dict[str, Any]]) -> None:
    """Add to each target what the reference and the best baselines of the same seed cost, over this row's.

    The best of those that are compressed, and of those that others published (`compressed`, `published`), is the one of
    the fewest bytes.

    Where the reference never got there, what its rounds had sent by then is a lower bound of what it would have cost:
    `ratio_to_fedavg_at_least`.
    """
    of_seed: dict[int, list[dict[str, Any]]] = {}
    for record in records:
        of_seed.setdefault(record["seed"], []).append(record)
    for record in records:
        peers = of_seed[record["seed"]]
        reference = next((peer for peer in peers if peer["method"] == REFERENCE), None)
        for place, cell in enumerate(record["targets"]):
            for criterion in CRITERIA:
                own = cell[criterion]
                if own is None:
                    continue
                own.update(dict.fromkeys(_RATIOS))
                if record["base_method"] == ALONE:  # what needs no federation saves nothing of one
                    continue
                if reference is not None:
                    theirs = reference["targets"][place][criterion]
                    if theirs is not None:
                        own["ratio_to_fedavg"] = theirs["bytes"] / own["bytes"]
                        own["bytes_over_fedavg"] = own["bytes"] - theirs["bytes"]
                    else:
                        sent = reference["total_bytes"] - reference["evaluation_bytes"]
                        own["ratio_to_fedavg_at_least"] = sent / own["bytes"]
                for kind in KINDS:
                    of_kind = [
                        (peer["targets"][place][criterion]["bytes"], peer["method"])
                        for peer in peers
                        if peer[kind] and peer["targets"][place][criterion]
                    ]
                    if of_kind:
                        fewest, own[f"{kind}_baseline"] = min(of_kind)
                        own[f"ratio_to_{kind}"] = fewest / own["bytes"]


def best_of_kind(records: Iterable[dict[str, Any]], place: int, criterion: str, kind: str) -> Counter[str]:
    """Count with how many seeds each row was the best baseline of a kind at a target: `compressed` or `published`."""
    best: dict[int, str] = {}
    for record in records:
        cell = record["targets"][place][criterion]
        if cell is not None and f"{kind}_baseline" in cell:
            best[record["seed"]] = cell[f"{kind}_baseline"]
    return Counter(best.values())


def mark_meaningful(records: Sequence[dict[str, Any]]) -> None:
    """Mark each target that needs a federation: training alone never touches it.

    None where that is unknown: a seed without a run that trained alone to the end.
    """
    alone = [record for record in records if record["base_method"] == ALONE]
    ended = {record["seed"] for record in alone if record["stopped"] is None}
    known = ended == {record["seed"] for record in records}
    for record in records:
        for place, cell in enumerate(record["targets"]):
            touched = [each["targets"][place]["first_touch"] is not None for each in alone]
            cell["meaningful"] = False if any(touched) else True if known else None
