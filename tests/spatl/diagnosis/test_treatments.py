"""Filters switched off and repaired, on a network whose one wrong filter is known.

Class scores are the means of three filters' channels: on an image of ones, the weights (2, 3, 1). An example of class 0
is taken for class 1, and right without the filter 1.
"""

import pytest
import torch
from torch import nn

from spatl.data import Examples
from spatl.diagnosis.treatments import HARMFUL, NOTHING, SALIENT, WAYS, Case, repairs, switched_off
from spatl.saliency.filters import filters_of
from spatl.saliency.profiles import profiles


class Mean(nn.Module):
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.mean((2, 3))


def network() -> nn.Module:
    convolution = nn.Conv2d(1, 3, 1, bias=False)
    convolution.weight.data = torch.tensor([2.0, 3.0, 1.0]).reshape(3, 1, 1, 1)
    return nn.Sequential(convolution, Mean()).eval()


def examples(label: int, number: int = 2) -> Examples:
    return Examples(torch.ones(number, 1, 4, 4), torch.full((number,), label))


MODEL = network()
FILTERS = filters_of(MODEL)


def scores_of(wrong: Examples) -> dict[str, torch.Tensor]:
    found = profiles(MODEL, wrong, FILTERS)
    return {SALIENT: found.absolute, HARMFUL: found.signed}


def draw() -> torch.Generator:
    return torch.Generator().manual_seed(1)


def test_without_the_filter_that_is_to_blame_the_error_is_right_and_right_ones_of_its_class_are_wrong():
    wrong, right = examples(0), examples(1)
    found = {
        each.way: each for each in switched_off(MODEL, wrong, right, scores_of(wrong), FILTERS, k=1, generator=draw())
    }
    assert list(found) == [NOTHING, *WAYS]
    chances = torch.tensor([2.0, 3.0, 1.0]).softmax(0)
    assert (found[NOTHING].righted, found[NOTHING].broken) == (0.0, 0.0)
    assert found[NOTHING].confidence == pytest.approx(float(chances[0]))
    assert (found["most harmful"].righted, found["most harmful"].broken) == (1.0, 1.0)
    assert found["most harmful"].confidence == pytest.approx(float(torch.tensor([2.0, 0.0, 1.0]).softmax(0)[0]))
    assert (found["least salient"].righted, found["least salient"].broken) == (0.0, 0.0)


def test_where_each_error_has_filters_of_its_own_nothing_is_said_of_right_predictions():
    wrong = Examples(torch.ones(2, 1, 4, 4), torch.tensor([0, 2]))
    found = switched_off(MODEL, wrong, None, scores_of(wrong), FILTERS, k=1, generator=draw())
    assert {each.broken for each in found} == {None}
    assert next(each for each in found if each.way == "most harmful").righted == 0.5  # of class 2, 0 is the next


def test_a_repair_tells_of_the_example_of_its_neighbours_of_others_and_of_right_predictions():
    """A step of 2 % of the length raises the confidence; neighbours that are the example itself have its fate."""
    wrong = examples(0, 1)
    scores = {name: each[:1] for name, each in scores_of(wrong).items()}
    nobody = Examples(wrong.inputs[:0], wrong.targets[:0])
    rows = repairs(MODEL, [Case(wrong, scores, wrong, nobody)], examples(1, 3), FILTERS, k=1, generator=draw())
    found = {each.way: each for each in rows}
    assert list(found) == [NOTHING, *WAYS]
    assert found[NOTHING].confidence == pytest.approx(float(torch.tensor([2.0, 3.0, 1.0]).softmax(0)[0]))
    for each in rows:
        assert each.others is None
        assert each.neighbours == each.righted
        assert each.way == NOTHING or each.confidence > found[NOTHING].confidence
    assert found["most salient"].confidence > found["least salient"].confidence


def test_random_controls_follow_from_the_generator():
    wrong, right = examples(0), examples(1)
    arguments = MODEL, wrong, right, scores_of(wrong), FILTERS
    first, second = (switched_off(*arguments, k=1, generator=draw()) for _ in range(2))
    assert first == second
