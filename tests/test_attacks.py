"""What one bad client among ten does to the others under a robust rule."""

import pytest

from tests.attacks import FACTORS, RULES, accuracy_under, config_of


@pytest.mark.slow
def test_one_bad_client_of_ten_moves_the_others_by_less_than_two_points_when_updates_are_clipped(tmp_path):
    """Its update times 1000, which the bound refuses, and its sign flipped, which is of the usual size."""
    config = config_of(RULES["clip 1.5"])
    accuracies = {
        name: accuracy_under(FACTORS[name], config, tmp_path / name) for name in ("none", "sign flipped", "times 1000")
    }
    assert min(accuracies.values()) > accuracies["none"] - 0.02
    assert accuracies["none"] > 0.9
