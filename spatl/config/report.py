"""Section on what a run shows of itself, and what it asks its clients for to show it."""

from typing import Annotated, Literal

from pydantic import BeforeValidator

from spatl.config.sections import Count, Section


def when_asked(value: object) -> object:
    """Return when clients are asked for something: None for never, `end`, or every so many rounds.

    Raises:
        ValueError: It is none of these; YAML makes false of `off`.
    """
    if value is None or value is False or value == "off":
        return None
    if value == "end" or (isinstance(value, int) and not isinstance(value, bool) and value >= 1):
        return value
    raise ValueError(f"must be off, end, or a number of rounds from 1, got {value!r}")


class ReportConfig(Section):
    """Results that a run shows when it ends."""

    compare_alone: bool = False
    """Also train every client alone for as many epochs, and show both."""
    tensorboard: bool = False
    """Also write every round as TensorBoard's scalars, to `tensorboard/` in the run's directory."""
    every: Count = 1
    """Have clients evaluate what arrives in one round of so many; the model after the last round in any case. A round
    in which they do not is shorter by that, and its accuracy and loss are null; what is trained is the same."""
    best: bool = False
    """Also keep the best model so far by the clients' validation splits (`model/best/`): each update then brings its
    client's accuracy there, and BatchNorm statistics at 8 bytes a channel."""
    findings: Annotated[Literal["end"] | int | None, BeforeValidator(when_asked)] = None
    """Ask each client what the model does on its validation split, which tells whose data are faulty: `end` after the
    last round, a number besides after every so many rounds, `off` never."""
    prototype_examples: Count | None = 2
    """Fewest validation examples of a class whose mean features go with the findings; null: none of any class go."""
    global_accuracy: Annotated[Literal["end"] | int | None, BeforeValidator(when_asked)] = "end"
    """Evaluate the server's model on all of the test set that the data set was published with: `end` after the last
    round, a number besides on arrival in every so many rounds, `off` never."""
    test_data: str | None = None
    """Where the server has test examples while devices have data of their own: read as `data.name` and its other
    options say, on the server alone. Its model is then measured on them (`report.global_accuracy`)."""
    split: Literal["test", "validation"] = "test"
    """The split that accuracies are measured on; `validation` is for tuning, and leaves the test splits unread."""

    def evaluates_arrived(self, server_round: int) -> bool:
        """Return whether the clients of a round evaluate what they have received."""
        return server_round % self.every == 0

    def measures_arrived(self, server_round: int) -> bool:
        """Return whether the server's model is measured as the clients of a round have received it."""
        when = self.global_accuracy
        return when is not None and when != "end" and server_round % when == 0

    def asks_findings(self, server_round: int, *, last: bool) -> bool:
        """Return whether clients are asked for their findings after a round, which may be the last."""
        when = self.findings
        return when is not None and (last or (when != "end" and server_round % when == 0))
