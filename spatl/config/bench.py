"""Sections that `spatl bench` alone reads: methods, seeds, targets, ablations."""

from typing import Annotated, Any, Self

from pydantic import BeforeValidator, Field, field_validator, model_validator

from spatl.config.sections import Count, Momentum, Positive, Section, not_a_switch, some_and_distinct

Target = Annotated[float, BeforeValidator(not_a_switch)]
"""Value of a metric, finite."""


class AblationsConfig(Section):
    """Rows of `spatl bench` that are another row without one of its ideas."""

    full: str = "spatl"
    """The label of the row that has all ideas."""
    without: dict[str, str] = Field(default_factory=dict)
    """What each of the other rows lacks, by its label: the rest of a sentence that begins with "without". The reports
    then say what every idea saves; no rows, no such table."""

    @field_validator("without")
    @classmethod
    def _said(cls, without: dict[str, str]) -> dict[str, str]:
        if silent := [label for label, idea in without.items() if not idea.strip()]:
            raise ValueError(f"says nothing of {silent[0]}; say what that row lacks")
        return without

    @model_validator(mode="after")
    def _others_than_the_full_row(self) -> Self:
        if self.full in self.without:
            raise ValueError(f"{self.full} is the full row; `without` names rows that lack something")
        return self


class BenchConfig(Section):
    """Comparison that `spatl bench` makes; a single run does not read it."""

    methods: dict[str, dict[str, Any]] = Field(default_factory=dict)
    """The rows of the table by label, each with the settings in which it differs from the rest of the config. The label
    is the method where `method` is not among them; no rows means every method there is."""
    seeds: tuple[Annotated[int, Field(ge=0)], ...] = (1, 2, 3)
    """Every row runs once with each."""
    targets: tuple[Target, ...] = (0.6, 0.7, 0.8, 0.9, 0.95)
    """Accuracies whose cost is reported; of another task values of its first metric, in its own unit and direction."""
    learning_rates: tuple[Positive, ...] = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5)
    """The grid of `--tune`: the rates of runs without momentum."""
    momenta: tuple[Momentum, ...] = (0.0,)
    """`--tune` compares every learning rate with each, for every row, whatever momentum a row has of its own. With
    momentum m a run takes the grid's rate times 1 - m, so that its steps add up to the same length whatever m is."""
    server_factors: tuple[Positive, ...] = (1.0,)
    """`--tune` compares every pair of those with multiples of a row's own `server.learning_rate`, whose size depends
    on the method. What trains alone has no server, and meets the first of them only."""
    tune_seeds: tuple[Annotated[int, Field(ge=0)], ...] = (101,)
    """Seeds of the runs that `--tune` compares, on their validation splits."""
    tune_rounds: Count | None = None
    """Rounds of those runs; null for as many as the bench's."""
    ablations: AblationsConfig = AblationsConfig()
    """Which rows tell what one idea of a method is worth."""

    _distinct = field_validator("seeds", "targets", "learning_rates", "momenta", "server_factors", "tune_seeds")(
        some_and_distinct
    )
