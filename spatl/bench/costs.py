"""Cost of a run until it reached an accuracy: rounds, bytes and seconds, by first touch and held.

An accuracy belongs to the encoder as it arrived, so its cost is everything before: all earlier rounds, and the bytes
that brought it. The run after its last round is one more such point, over all clients.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

from spatl.bench.score import ACCURACY, Score
from spatl.runs.records import bytes_on_arrival, is_number
from spatl.runs.scores import score_in

HELD_ROUNDS: Final = 3
"""A target is held when so many accuracies in a row reach it; its cost is counted up to the last of them."""


@dataclass(frozen=True)
class Point:
    """Accuracy of a run after some round, and its cost until then.

    Attributes:
        rounds: Rounds of training before it.
        bytes: Everything sent before it and with it, in both directions, registration included.
        seconds: Seconds of the rounds before it.
        accuracy: Mean over clients, in [0, 1]; of another task the mean of its score.
        loss: Mean over clients, on the same examples; None where it was not measured.
    """

    rounds: int
    bytes: int
    seconds: float
    accuracy: float
    loss: float | None = None


def trajectory(history: Sequence[Mapping[str, Any]], final_downlink_bytes: int = 0) -> list[Point]:
    """Return the points of a run, in order.

    Args:
        history: The objects of `history.jsonl`.
        final_downlink_bytes: Bytes that brought the final encoder to all clients; the last round's history counts them
            to its downlink, though its accuracy on arrival was had without them.

    Returns:
        One point per round that measured an accuracy, and one after the last round if that was measured.
    """
    points = []
    seconds = 0.0
    for row, cost in zip(history, bytes_on_arrival(history), strict=True):
        arrived, after = score_in(row), score_in(row, "final_")
        if arrived is not None and is_number(arrived):
            cost -= final_downlink_bytes if is_number(after) else 0
            points.append(Point(row["round"] - 1, cost, seconds, arrived, _loss(row.get("loss"))))
        seconds += row["seconds"]
        if after is not None and is_number(after):
            total = sum(each["uplink_bytes"] + each["downlink_bytes"] for each in history)
            points.append(Point(row["round"], total, seconds, after, _loss(row.get("final_loss"))))
    return points


def cell_of(point: Point | None, score: Score) -> dict[str, Any] | None:
    """Return a point as `bench.json` has it: with its accuracy, or its score."""
    if point is None:
        return None
    names = {} if score.is_accuracy else {"accuracy": "score"}
    return {names.get(key, key): value for key, value in asdict(point).items()}


def _loss(value: Any) -> float | None:
    return float(value) if is_number(value) else None


def first_touch(points: Sequence[Point], target: float, score: Score = ACCURACY) -> Point | None:
    """Return the first point that reaches the target, or None."""
    return next((point for point in points if score.reaches(point.accuracy, target)), None)


def held(points: Sequence[Point], target: float, score: Score = ACCURACY, *, rounds: int = HELD_ROUNDS) -> Point | None:
    """Return the point at which the target had been reached `rounds` times in a row for the first time, or None."""
    in_a_row = 0
    for point in points:
        in_a_row = in_a_row + 1 if score.reaches(point.accuracy, target) else 0
        if in_a_row == rounds:
            return point
    return None
