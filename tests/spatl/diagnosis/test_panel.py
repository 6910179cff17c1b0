"""The panel: scores, places and verdicts of all clients together."""

from dataclasses import replace

import pytest
import torch

from spatl.diagnosis.panel import LEAST_ACCURACY, diagnose
from spatl.diagnosis.run import mean_cosines
from spatl.diagnosis.verdicts import AGAINST, NOTHING, UNKNOWN
from spatl.errors import SpatlError
from spatl.json_files import to_json
from spatl.runs.records import append_lines
from spatl.saliency.findings import Findings
from tests.support.findings import drawn_findings


def right(findings: Findings, share: float = 1.0) -> Findings:
    """The same with so many examples of each class classified correctly, rounded down."""
    return replace(findings, correct=(share * findings.counts).long())


CLIENTS = {client: right(drawn_findings(client)) for client in (4, 2, 0, 1, 3, 9)}


@pytest.mark.slow
def test_clients_stand_in_the_order_of_their_numbers_with_what_is_known_of_them():
    found = diagnose(CLIENTS, cosines={0: 0.5, 2: 0.4})
    assert [each.client for each in found.clients] == [0, 1, 2, 3, 4, 9]
    assert list(found.clients[0].scores) == [
        "mean_z",
        "loss",
        "worst_class",
        "prototypes",
        "saliency",
        "mislabelled",
        "cosine",
        "labels",
    ]
    assert found.clients[0].scores["cosine"].value == 0.5
    assert found.clients[1].scores["cosine"].value is None
    assert (found.accuracy, found.can_tell) == (1.0, True)
    assert found.clients[0].num_examples == 12


def test_a_diagnosis_can_be_written_as_json():
    found = diagnose(CLIENTS).to_json()
    assert found["clients"][0]["verdict"]["kind"]
    assert to_json(found)


def test_below_the_least_accuracy_of_the_middle_client_nothing_is_said_of_anybody():
    poor = {client: right(each, 0.5) for client, each in CLIENTS.items()}
    found = diagnose(poor)
    assert not found.can_tell
    assert {each.verdict.kind for each in found.clients} == {UNKNOWN}
    assert "70 % are needed" in found.clients[0].verdict.text
    assert found.suspects == ()


@pytest.mark.slow
def test_an_update_against_the_others_is_named_whatever_the_model_knows():
    """With the other cosines at .4 to .5; what is said of its data goes first."""
    cosines = {0: 0.4, 1: 0.42, 2: 0.45, 3: -0.6, 4: 0.48, 9: 0.5}
    for share in (1.0, 0.5):
        found = diagnose({client: right(each, share) for client, each in CLIENTS.items()}, cosines=cosines)
        assert [each.client for each in found.suspects if each.verdict.kind == AGAINST] == [3]


def test_a_few_clients_on_which_the_model_fails_do_not_keep_it_from_telling():
    """The middle client counts, not the mean, which three of six that fail would pull below."""
    some = {client: right(each, 0.0 if client in (0, 1) else 1.0) for client, each in CLIENTS.items()}
    found = diagnose(some)
    assert sum(each.accuracy for each in found.clients) / 6 < LEAST_ACCURACY
    assert found.can_tell


def test_clients_that_are_alike_are_not_suspected():
    found = diagnose(dict.fromkeys(range(6), right(drawn_findings(1))))
    assert found.suspects == ()
    assert {each.verdict.kind for each in found.clients} == {NOTHING}


def test_findings_about_another_network_are_refused():
    with pytest.raises(SpatlError, match="different networks or classes"):
        diagnose({**CLIENTS, 5: drawn_findings(5, num_filters=6)})


def test_too_few_clients_are_refused():
    with pytest.raises(SpatlError, match="at least 5 clients, got 2"):
        diagnose({client: CLIENTS[client] for client in (0, 1)})


@pytest.mark.slow
def test_a_class_without_an_example_anywhere_changes_nothing():
    def with_an_empty_class(findings: Findings) -> Findings:
        rows = {name: getattr(findings, name) for name in ("counts", "losses", "correct", "labels")}
        longer = {name: torch.cat([each, torch.zeros(1, dtype=each.dtype)]) for name, each in rows.items()}
        wider = {
            name: torch.cat([each, torch.zeros(1, each.shape[1])])
            for name, each in (("class_profiles", findings.class_profiles), ("prototypes", findings.prototypes))
        }
        return Findings(moments=findings.moments, **longer, **wider)

    found = diagnose({client: with_an_empty_class(each) for client, each in CLIENTS.items()})
    assert found == diagnose(CLIENTS)


def test_the_cosine_of_a_client_is_the_mean_over_its_rounds(tmp_path):
    """Rounds in which it did not answer have none; those of a run from before there were any, neither."""
    rows = [
        {"round": 1, "client": 0, "cosine": 0.5}, {"round": 1, "client": 1, "cosine": None},
        {"round": 2, "client": 0, "cosine": -0.1}, {"round": 2, "client": 2},
    ]  # fmt: skip
    append_lines(tmp_path / "clients.jsonl", rows)
    assert mean_cosines(tmp_path) == {0: pytest.approx(0.2)}
    assert mean_cosines(tmp_path / "elsewhere") == {}
