"""Finished runs as files, without running anything."""

from collections.abc import Sequence
from pathlib import Path

from spatl.config.experiment import ExperimentConfig
from spatl.json_files import write_json
from spatl.runs.records import append_lines


def write_run(
    path: Path, config: ExperimentConfig, accuracies: Sequence[float], *, bytes_each_way: int, score: str | None = None
) -> None:
    """Write what a run with these accuracies on arrival, and after the last round, leaves behind; or scores."""
    worth, metric = ("accuracy", {}) if score is None else ("score", {"metric": score, "accuracy": None})
    path.mkdir(parents=True)
    (path / "config.yaml").write_text(config.to_yaml())
    *arrivals, final = accuracies
    parts = {"values": bytes_each_way - 1, "indices": 0, "control": 0, "other": 1}
    for number, accuracy in enumerate(arrivals, 1):
        last = number == len(arrivals)
        row = {
            "round": number,
            **metric,
            worth: accuracy,
            "loss": 2.5 * (1 - accuracy) + 0.1,
            "participants": 2,
            "rejected": 0,
            "keep_ratio": 1.0,
            "uplink_bytes": bytes_each_way,
            "downlink_bytes": (2 if last else 1) * bytes_each_way,
            "uplink": parts,
            "downlink": parts,
            "seconds": 1.0,
            f"final_{worth}": final if last else None,
            "final_loss": 2.5 * (1 - final) + 0.1 if last else None,
        }
        append_lines(path / "history.jsonl", [row])
    ledger = [
        {"round": number, "phase": "train", "direction": way, "bytes": bytes_each_way}
        for number in range(1, len(arrivals) + 1)
        for way in ("downlink", "uplink")
    ]
    ledger.append({"round": len(arrivals), "phase": "evaluate", "direction": "downlink", "bytes": bytes_each_way})
    append_lines(path / "ledger.jsonl", ledger)
    write_json(path / "summary.json", {"clients": {"0": final - 0.1, "1": final + 0.1}})
