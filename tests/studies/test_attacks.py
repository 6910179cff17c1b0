"""What bad clients among ten do to the others (docs/robustness.md has what does not hold)."""

import pytest

from tests.studies.attacks import FACTORS, RULES, accuracy_under, config_of


@pytest.mark.slow
def test_one_client_of_ten_that_sends_a_thousand_times_its_update_costs_the_others_less_than_two_points(tmp_path):
    """The bound refuses it; a plain mean without it diverges."""
    config = config_of(RULES["clip 1.5"])
    untouched, attacked = (accuracy_under(FACTORS[name], config, tmp_path / name) for name in ("none", "times 1000"))
    assert attacked > untouched - 0.02
    assert untouched > 0.9


@pytest.mark.slow
def test_three_that_flip_the_sign_cost_them_less_than_four_points_if_clients_have_to_agree(tmp_path):
    """On seed 2 one alone costs the plain mean a seventh of its accuracy; what three know is worth a point or two."""
    config = config_of(RULES["agreement"], seed=2, rounds=20)
    bad = (3, 4, 5)
    untouched, attacked = (
        accuracy_under(FACTORS[name], config, tmp_path / name, bad=bad) for name in ("none", "sign flipped")
    )
    assert attacked > untouched - 0.04
    assert untouched > 0.9
