"""Judging of clients' evaluations: of how many examples one can be."""

from spatl.rounds.blueprint import Blueprint


def most_tested(blueprint: Blueprint, client: int) -> int | None:
    """Return how many examples a client is evaluated on, at most; None where it alone knows, or nobody asks."""
    if blueprint.config.has_own_data or not blueprint.task.tells_more:
        return None
    _, validation, test = blueprint.split_sizes[client]
    return test if blueprint.config.report.split == "test" else validation
