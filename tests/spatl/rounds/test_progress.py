"""What passes ends no run of devices; what lasts does."""

import pytest

from spatl.rounds.answers import Outcome
from spatl.rounds.federation import Federation
from spatl.rounds.progress import checked_progress
from spatl.rounds.server import first_state
from tests.support.federations import blueprint_of, tiny_config

CLIENTS = range(5)
ROUNDS = 5


def endings(outcome: Outcome, *, of_devices: bool) -> list[bool]:
    """Whether a run ends in each of some rounds that all come out alike, up to the one in which it does."""
    federation = Federation(blueprint_of(tiny_config()), frozenset(CLIENTS), of_devices=of_devices)
    state, found = first_state(federation, dict.fromkeys(CLIENTS, 10)), list[bool]()
    for number in range(1, ROUNDS + 1):
        state, ending = checked_progress(federation, state, number, outcome, state.encoder)
        found.append(ending is not None)
        if ending is not None:
            break
    return found


@pytest.mark.parametrize("passing", ["not_now", "forgot"])
def test_devices_that_all_rest_or_begin_anew_end_no_run(passing: str) -> None:
    everyone = Outcome(rejected=dict.fromkeys(CLIENTS, "it passes"), **{passing: set(CLIENTS)})
    assert endings(everyone, of_devices=True) == [False] * ROUNDS


def test_one_refusal_that_lasts_beside_them_ends_it_in_the_third_round() -> None:
    some = Outcome(rejected={0: "it passes", 1: "no"}, not_now={0})
    assert endings(some, of_devices=True) == [False, False, True]
    assert endings(Outcome(rejected=dict.fromkeys(CLIENTS, "no")), of_devices=True) == [True]
