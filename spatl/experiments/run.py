"""Run of the experiments that a config asks for: networks, claims, and what is left in a directory."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from spatl import __version__
from spatl.config.experiment import ExperimentConfig
from spatl.experiments.claims import CLAIM_TABLE
from spatl.experiments.measures import Measure, Row, rows_of
from spatl.experiments.networks import Subject, make_subject
from spatl.json_files import write_json
from spatl.training.device import reproducible

RESULT: Final = "saliency.json"
"""Name of the file with all numbers."""
PICTURE: Final = "saliency.png"
"""Name of the picture."""

OnStep = Callable[[str, int, int], None]
"""Called with what begins, the number of steps that are done, and that of all."""


@dataclass(frozen=True)
class Outcome:
    """Outcome of the experiments.

    Attributes:
        rows: One for each claim, quantity, setting and way.
        networks: What each network is: seed, accuracy, errors, filters.
    """

    rows: tuple[Row, ...]
    networks: tuple[dict[str, Any], ...]

    def of(self, claim: str) -> list[Row]:
        """Return the rows of one claim."""
        return [row for row in self.rows if row.claim == claim]


def run_experiments(config: ExperimentConfig, on_step: OnStep = lambda what, done, total: None) -> Outcome:
    """Train the networks and measure every claim on each.

    Args:
        config: Data, model, training and `saliency`.
        on_step: Told before each step.

    Raises:
        SpatlError: A network makes no errors, or has no convolution, or the data are not there.
    """
    settings, measures, networks = config.saliency, list[list[Measure]](), list[dict[str, Any]]()
    total = len(settings.seeds) * (1 + len(settings.claims))
    done = 0
    with reproducible(config.training.threads):
        for seed in settings.seeds:
            on_step(f"seed {seed}: training", done, total)
            subject = make_subject(config, seed)
            networks.append(_facts(subject))
            measures.append([])
            done += 1
            for claim in settings.claims:
                on_step(f"seed {seed}: {claim}", done, total)
                measures[-1] += CLAIM_TABLE[claim].measure(subject, settings)
                done += 1
    on_step("done", done, total)
    return Outcome(tuple(rows_of(measures)), tuple(networks))


def write_outcome(directory: Path, outcome: Outcome, config: ExperimentConfig, command: str) -> None:
    """Write the numbers of an outcome, and what made them.

    Args:
        directory: Where to; it is made.
        outcome: The outcome.
        config: What was run.
        command: As one would type it again.
    """
    directory.mkdir(parents=True, exist_ok=True)
    about = {
        "command": command, "spatl": __version__, "data": config.data.model_dump(mode="json"),
        "model": config.model.model_dump(mode="json"), "training": config.training.model_dump(mode="json"),
        "saliency": config.saliency.model_dump(mode="json"), "networks": list(outcome.networks),
        "rows": [asdict(row) for row in outcome.rows],
    }  # fmt: skip
    write_json(directory / RESULT, about)


def quantities(rows: Sequence[Row]) -> list[str]:
    """Return the quantities of rows, each once, in their order; so do the next two."""
    return list(dict.fromkeys(row.quantity for row in rows))


def conditions(rows: Sequence[Row]) -> list[str]:
    """Return the settings of rows."""
    return list(dict.fromkeys(row.setting for row in rows))


def ways(rows: Sequence[Row]) -> list[str]:
    """Return the ways of rows."""
    return list(dict.fromkeys(row.way for row in rows))


def _facts(subject: Subject) -> dict[str, Any]:
    return {
        "seed": subject.seed, "accuracy": subject.accuracy, "errors": len(subject.errors),
        "filters": subject.filters.num_filters,
    }  # fmt: skip
