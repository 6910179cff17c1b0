"""The best round of a run so far, by the clients' validation splits, and how long nothing better may come of it."""

from dataclasses import dataclass

from spatl.tasks.task import CLASSIFICATION, Task


@dataclass(frozen=True)
class Best:
    """Best of the models that clients have told of.

    Attributes:
        accuracy: Its mean accuracy on the validation splits of those that told, in [0, 1], or score of another task.
        server_round: The round after which it stood; of equally good ones the first.
    """

    accuracy: float
    server_round: int


def better_of(
    best: Best | None, accuracy: float | None, server_round: int, *, task: Task = CLASSIFICATION
) -> Best | None:
    """Return the best once a model was told of; None of the initial one, in which there is nothing of the run."""
    if accuracy is None or server_round < 1 or (best is not None and not task.is_better(accuracy, best.accuracy)):
        return best
    return Best(accuracy, server_round)


def is_enough(best: Best | None, server_round: int, stop_after: int | None) -> bool:
    """Return whether so many rounds brought nothing better that the round is to be the last.

    Args:
        best: As of the end of the round, in which clients told of the model of the round before.
        server_round: The round.
        stop_after: `server.stop_after`; None for never.
    """
    return stop_after is not None and best is not None and server_round - 1 - best.server_round >= stop_after
