"""How a client differs from its federation."""

from dataclasses import replace
from pathlib import Path

import pytest

from spatl.diagnosis.standing import standing_of
from spatl.diagnosis.subject import read_subject
from spatl.json_files import read_json


def nobody(done: int, total: int) -> None:
    pass


@pytest.mark.slow
def test_a_client_stands_among_all_by_its_classes_its_accuracy_and_its_profiles(explained_run: Path):
    subject = read_subject(explained_run, client=2)
    standing = standing_of(subject, seed=3, progress=nobody)
    blueprint, reported = subject.blueprint, read_json(explained_run / "summary.json")["clients"]
    number = blueprint.config.partition.num_clients
    assert sum(each.own for each in standing.classes) == len(blueprint.client_data(2).train)
    assert sum(each.all for each in standing.classes) == sum(len(blueprint.client_data(i).train) for i in range(number))
    assert standing.accuracy == reported["2"]
    assert standing.accuracy_mean == pytest.approx(sum(reported.values()) / number)
    assert (standing.accuracy_lowest, standing.accuracy_highest) == (min(reported.values()), max(reported.values()))
    assert standing.rank == 1 + sum(value > reported["2"] for value in reported.values())
    assert standing.num_compared == number - 1
    assert not standing.by_own_model
    assert [each.layer for each in standing.layers] == [layer.name for layer in subject.filters.layers]
    for each in standing.layers:
        assert each.lowest <= each.median <= each.highest
    assert standing == standing_of(subject, seed=3, progress=nobody)


@pytest.mark.slow
def test_the_federations_model_and_a_device_stand_nowhere(explained_run: Path):
    assert standing_of(read_subject(explained_run), seed=3, progress=nobody) is None
    alone = replace(read_subject(explained_run, client=2), blueprint=None)
    assert standing_of(alone, seed=3, progress=nobody) is None
