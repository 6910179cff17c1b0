"""Findings in a run's directory: what is written is read again, and what is damaged is one line."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from spatl.errors import DamagedState, SpatlError
from spatl.runs.files import MARKS
from spatl.runs.findings import findings_rounds, forget_findings, read_findings, write_findings
from spatl.saliency.moments import Moments
from tests.support.findings import drawn_filters, drawn_findings, same_findings

FILTERS, CLASSES = drawn_filters(2, 3), ("cat", "dog", "été")
BY_CLIENT = {client: drawn_findings(client) for client in (0, 4, 11)}


def written(run: Path, server_round: int = 3, by_client=BY_CLIENT) -> Path:
    return write_findings(run, server_round, by_client, filters=FILTERS, class_names=CLASSES)


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    written(tmp_path, 3)
    record = read_findings(tmp_path)
    assert (record.round, record.filters, record.class_names) == (3, FILTERS, CLASSES)
    assert list(record.by_client) == [0, 4, 11]
    assert all(same_findings(record.by_client[client], each) for client, each in BY_CLIENT.items())


def test_the_last_round_is_read_unless_another_is_named(tmp_path: Path) -> None:
    """Round 10 comes after round 9, whatever the order of the names."""
    for number in (9, 10, 2):
        written(tmp_path, number)
    (tmp_path / "findings" / "10.safetensors.tmp").write_bytes(b"a process was killed here")
    assert findings_rounds(tmp_path) == [2, 9, 10]
    assert read_findings(tmp_path).round == 10
    assert read_findings(tmp_path, 2).round == 2


def test_equal_findings_are_equal_bytes_in_any_order_of_clients(tmp_path: Path) -> None:
    one = written(tmp_path / "one").read_bytes()
    assert written(tmp_path / "other", by_client=dict(reversed(BY_CLIENT.items()))).read_bytes() == one


def test_rounds_that_are_done_again_lose_their_findings(tmp_path: Path) -> None:
    for number in (1, 2, 3):
        written(tmp_path, number)
    forget_findings(tmp_path, after=1)
    assert findings_rounds(tmp_path) == [1]


def test_a_round_without_findings_names_those_that_have_them(tmp_path: Path) -> None:
    with pytest.raises(SpatlError, match=r"has no findings of its clients: set report\.findings"):
        read_findings(tmp_path)
    written(tmp_path, 2)
    written(tmp_path, 4)
    with pytest.raises(SpatlError, match=r"round 3 of .* has no findings; these have: 2, 4"):
        read_findings(tmp_path, 3)


@pytest.mark.slow
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_a_file_that_is_cut_or_changed_anywhere_is_damaged(tmp_path: Path, data: st.DataObject) -> None:
    path = written(tmp_path)
    whole = path.read_bytes()
    place = data.draw(st.integers(0, len(whole) - 1))
    if data.draw(st.booleans()):
        path.write_bytes(whole[:place])
    else:
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1 << data.draw(st.integers(0, 7))]) + whole[place + 1 :])
    with pytest.raises(SpatlError) as caught:
        read_findings(tmp_path)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"losses": torch.tensor([1.0, float("nan"), 1.0])}, "the losses must be finite"),
        ({"counts": torch.tensor([12, -1, 1])}, "the counts must not be below 0"),
        ({"labels": torch.tensor([12, 1])}, r"the labels are of shape \[2\], expected \[3\]"),
        ({"moments": Moments(12, torch.zeros(4), torch.zeros(4))}, "the means are of shape"),
        ({"prototypes": torch.zeros(())}, "the prototypes are of shape"),
    ],
)
def test_a_sealed_file_of_what_cannot_be_is_damaged(tmp_path: Path, change: dict[str, object], reason: str) -> None:
    written(tmp_path, by_client={4: replace(BY_CLIENT[4], **change)})  # type: ignore[arg-type]
    with pytest.raises(DamagedState, match=f"the findings of client 4 cannot be: {reason}"):
        read_findings(tmp_path)


def test_a_file_under_another_rounds_name_is_damaged(tmp_path: Path) -> None:
    path = written(tmp_path, 3)
    path.rename(path.with_name("5.safetensors"))
    with pytest.raises(DamagedState, match=r"3.safetensors is not there, which the run left"):
        read_findings(tmp_path)
    (tmp_path / MARKS).unlink()
    with pytest.raises(DamagedState, match=r"5.safetensors has the findings of round 3"):
        read_findings(tmp_path)
