"""A finished run, in one line and in a notebook."""

import base64
from html import escape
from pathlib import Path

from spatl.report.result import RunResult


def result(directory: Path) -> RunResult:
    summary = {"method": "spatl", "title": "SPATL <b>", "data": "digits", "num_clients": 20, "rounds": 40,
               "accuracy": 0.981, "accuracy_min": 0.0, "uplink_bytes": 3_300_000, "downlink_bytes": 812}  # fmt: skip
    return RunResult(directory, summary, [{"round": 1}] * 40, [{"client": 1}] * 800, {"accuracy": 0.887})


def test_a_result_says_what_came_out_in_one_line():
    assert repr(result(Path("runs/x"))) == (
        "<RunResult SPATL <b> on digits, 20 clients: rounds 40, accuracy 98.1 %, worst client 0.0 %, up 3.3 MB, "
        "down 812 B, training alone 88.7 %; runs/x>"
    )


def test_a_notebook_shows_a_result_as_a_table_and_its_curves(tmp_path):
    without = result(tmp_path)._repr_html_()
    assert escape("SPATL <b>") in without
    assert "98.1 %" in without
    assert "<img" not in without
    (tmp_path / "curves.png").write_bytes(b"picture")
    assert base64.b64encode(b"picture").decode() in result(tmp_path)._repr_html_()
