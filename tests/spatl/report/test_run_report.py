import re
from dataclasses import replace
from html import escape
from pathlib import Path
from typing import Any

import pytest

from spatl.report import run_report as report
from spatl.report.result import RunResult
from spatl.report.run_report import write_report
from tests.support.browser import Browser, assert_fits
from tests.support.html_pages import Page

HOSTILE = """<script>alert("1")</script>'"&</title></pre></svg>-->{summary}%s<img src="https://evil.example/x.png">"""
PARTS = {"values": 1000, "indices": 10, "control": 5, "other": 90}


def run(num_rounds: int = 3, num_clients: int = 2) -> RunResult:
    """Rounds and clients whose bytes are all different, so that no number stands in another's place unnoticed."""
    clients: list[dict[str, Any]] = [
        {
            "round": number,
            "client": client,
            "participated": True,
            "accuracy": 0.5,
            "loss": 1.0,
            "train_loss": 0.9,
            "num_examples": 60 + client,
            "keep_ratio": 0.4,
            "flops_ratio": 0.55,
            "uplink_bytes": 100_000 * number + client,
            "downlink_bytes": 300_000 * number + client,
            "seconds": 0.1,
            "rejected": None,
            "final_accuracy": 0.75 + 0.125 * client if number == num_rounds else None,
            "final_loss": 0.3 if number == num_rounds else None,
        }
        for number in range(1, num_rounds + 1)
        for client in range(num_clients)
    ]
    history: list[dict[str, Any]] = [
        {
            "round": number,
            "accuracy": 0.5,
            "accuracy_min": 0.25,
            "loss": 1.0,
            "train_loss": 0.9,
            "participants": num_clients,
            "rejected": 0,
            "missing": 0,
            "keep_ratio": 0.4,
            "flops_ratio": 0.55,
            "uplink_bytes": sum(row["uplink_bytes"] for row in clients if row["round"] == number),
            "downlink_bytes": sum(row["downlink_bytes"] for row in clients if row["round"] == number),
            "uplink": PARTS,
            "downlink": PARTS,
            "encoder_fingerprint": "ab12",
            "seconds": 2.0,
            "rejections": [],
            "final_accuracy": None,
            "final_accuracy_min": None,
            "final_loss": None,
        }
        for number in range(1, num_rounds + 1)
    ]
    final = {str(row["client"]): row["final_accuracy"] for row in clients if row["final_accuracy"] is not None}
    uplink, downlink = (sum(row[key] for row in history) for key in ("uplink_bytes", "downlink_bytes"))
    summary = {
        "method": "spatl",
        "title": "SPATL",
        "seed": 7,
        "data": "digits",
        "model": "cnn",
        "num_clients": num_clients,
        "engine": "inline",
        "versions": {"spatl": "0.1.0", "python": "3.11.2"},
        "rounds": num_rounds,
        "accuracy": sum(final.values()) / len(final),
        "accuracy_min": min(final.values()),
        "loss": 0.3,
        "uplink_bytes": uplink,
        "downlink_bytes": downlink,
        "total_bytes": uplink + downlink,
        "whole_encoder_uplink_bytes": 4 * uplink,
        "uplink_share": 0.25,
        "keep_ratio": 0.4,
        "flops_ratio": 0.55,
        "rejected": 0,
        "missing": 0,
        "seconds": 6.0,
        "clients": final,
    }
    return RunResult(Path(), summary, history, clients)


def written(result: RunResult, tmp_path: Path, *, config_yaml: str = "seed: 7\n", command: str = "spatl run c") -> str:
    write_report(result, tmp_path / "report.html", config_yaml=config_yaml, command=command)
    return (tmp_path / "report.html").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The report of an ordinary run."""
    return written(run(), tmp_path_factory.mktemp("report"))


@pytest.fixture
def without_curves(monkeypatch: pytest.MonkeyPatch) -> None:
    """Spare the half second of drawing where the curves are not the point."""
    monkeypatch.setattr(report, "curves_svg", lambda result: "<svg></svg>")


@pytest.mark.slow
def test_the_page_is_a_whole_document_with_one_picture_and_its_words(text: str) -> None:
    page = Page(text)
    attributes = dict(page.tags)
    assert attributes["html"] == {"lang": "en"}
    assert page.text["title"] == page.text["h1"] == "SPATL on digits"
    assert [tag for tag, _ in page.tags].count("svg") == 1
    (words,) = [values["id"] for tag, values in page.tags if tag == "figcaption"]
    assert [values for _, values in page.tags if values.get("aria-describedby") == words and values["role"] == "img"]
    assert "between 0.750 and 0.875" in page.text["figcaption"]


def test_a_run_that_used_no_updates_of_clients_with_many_examples_says_so(tmp_path: Path, without_curves: None) -> None:
    result = run()
    assert "Refused or left out" not in Page(written(result, tmp_path)).summary
    result.summary.update(excluded_by_client={"1": 3}, excluded_examples_share=0.508)
    assert "hold 50.8 % of all" in Page(written(result, tmp_path)).summary["Refused or left out"]


@pytest.mark.slow
def test_the_page_refers_to_nothing_outside_and_runs_nothing(text: str) -> None:
    assert re.findall(r"https?:", re.sub(r'xmlns(:\w+)?="[^"]*"', "", text)) == []
    assert not re.search(r"@import|url\((?!#)", text)
    for tag, attributes in Page(text).tags:
        assert tag not in ("script", "link", "img", "iframe", "object")
        for name, value in attributes.items():
            assert not name.startswith("on")
            assert name not in ("src", "srcset", "data")
            assert not name.endswith("href") or (value or "").startswith("#")


def long_run() -> RunResult:
    """More of everything than fits a page: gigabytes, training alone, and a reason of three lines."""
    result = replace(run(num_rounds=40, num_clients=20), alone={"accuracy": 0.5, "clients": {"0": 0.5}})
    reason = "its root mean square is 11.3 times the median of earlier rounds, more than server.norm_bound allows; " * 3
    result.history[3].update(rejected=1, rejections=[{"client": 3, "reason": reason}])
    for row in result.clients:
        row.update(budget_kind="uplink_bytes", budget_limit=20000.0, validation_gain=0.0125)
    return result


@pytest.mark.slow
def test_nothing_runs_out_of_a_page_of_any_width(tmp_path: Path) -> None:
    command = f"spatl run quickstart --set data.options.path=/{'very' * 50}/long"
    written(long_run(), tmp_path, config_yaml=f"data: {{path: /{'very' * 80}}}\n", command=command)
    with Browser(tmp_path / "profile") as browser:
        for width in (1300, 1000, 600, 360):
            assert_fits(browser, tmp_path / "report.html", width)
        browser.open(tmp_path / "report.html", width=1000)
        assert browser.visit.complaints == []
        tables = browser.value(
            "[...document.querySelectorAll('table')].map(e => Math.round(e.getBoundingClientRect().right))"
        )
        assert max(tables) <= 1000  # even gigabytes fit without scrolling


def test_the_words_tell_the_loss_and_what_the_axis_is(text: str) -> None:
    words = Page(text).text["figcaption"]
    assert "The loss on the clients' test splits was 1.000 in round 1, 1.000 in round 3." in words
    assert "axis shows the range that occurs" in words


def hostile_run() -> RunResult:
    result = run()
    result.summary.update(title=HOSTILE, data=HOSTILE, model=HOSTILE, engine=HOSTILE, versions={HOSTILE: HOSTILE})
    result.history[1].update(rejected=1, rejections=[{"client": HOSTILE, "reason": HOSTILE}])
    return result


@pytest.mark.slow
def test_hostile_text_is_shown_and_does_nothing(tmp_path: Path) -> None:
    text = written(hostile_run(), tmp_path, config_yaml=f"data: {HOSTILE}\n", command=f"spatl run {HOSTILE}")
    page = Page(text)
    assert "<script" not in text
    assert "<img" not in text
    assert escape(HOSTILE) in text
    assert page.text["h1"] == f"{HOSTILE} on {HOSTILE}"
    assert page.text["pre"] == f"spatl run {HOSTILE}data: {HOSTILE}\n"
    assert page.table("reason") == [{"round": "2", "client": HOSTILE, "reason": HOSTILE}]


@pytest.mark.usefixtures("without_curves")
class TestTables:
    """What the tables say, read back from the page."""

    def test_each_round_shows_its_bytes_to_the_last_one(self, tmp_path: Path) -> None:
        result = run(num_rounds=5)
        rows = Page(written(result, tmp_path)).table("round", "uplink bytes")
        shown = [(row["round"], row["uplink bytes"], row["downlink bytes"]) for row in rows]
        assert shown == [
            (str(row["round"]), f"{row['uplink_bytes']:,}", f"{row['downlink_bytes']:,}") for row in result.history
        ]

    def test_the_bytes_of_the_clients_add_up_to_those_of_the_summary(self, tmp_path: Path) -> None:
        result = run(num_rounds=4, num_clients=3)
        page = Page(written(result, tmp_path))
        rows = page.table("client", "uplink bytes")
        for column, label in (("uplink bytes", "(uplink)"), ("downlink bytes", "(downlink)")):
            total = sum(int(row[column].replace(",", "")) for row in rows)
            (shown,) = [value for name, value in page.summary.items() if label in name]
            assert f"({total:,} bytes)" in shown

    def test_the_parts_of_all_rounds_are_added_up(self, tmp_path: Path) -> None:
        uplink, downlink = Page(written(run(num_rounds=3), tmp_path)).table("direction")
        assert (uplink["values"], uplink["indices"], uplink["control"]) == ("3,000", "30", "15")
        assert downlink["other"] == "270"

    def test_the_summary_says_what_came_out(self, tmp_path: Path) -> None:
        """Two clients end at 0.75 and 0.875; rounds 1 to 3 send 200 001 + 400 001 + 600 001 bytes up."""
        summary = Page(written(run(), tmp_path)).summary
        assert summary["Accuracy after the last round"].startswith("0.812 ")
        assert summary["Worst client"] == "0.750 (client 0)"
        assert summary["Sent by the clients (uplink)"] == "1.2 MB (1,200,003 bytes)"
        assert summary["Share of that really sent"] == "0.250"
        assert summary["Seed"] == "7"
        assert summary["Versions"] == "spatl 0.1.0, python 3.11.2"

    def test_training_alone_is_compared_with_if_it_is_known(self, tmp_path: Path) -> None:
        result = replace(run(), alone={"accuracy": 0.875, "clients": {"0": 0.5}})
        page = Page(written(result, tmp_path))
        assert page.summary["Training alone"] == "0.875"
        assert page.summary["Gained by the federation"] == "-0.062"
        first, second = page.table("client", "alone")
        assert (first["alone"], first["gained"]) == ("0.500", "+0.250")
        assert (second["alone"], second["gained"]) == ("–", "–")

    def test_without_training_alone_there_is_no_word_of_it(self, tmp_path: Path) -> None:
        page = Page(written(run(), tmp_path))
        assert "Training alone" not in page.summary
        assert "alone" not in page.table("client", "uplink bytes")[0]

    def test_refused_updates_are_listed_only_if_there_are_any(self, tmp_path: Path) -> None:
        assert "Refused updates</h2>" not in written(run(), tmp_path)
        result = run()
        result.history[0]["rejections"] = [{"client": 1, "reason": "not finite"}]
        assert Page(written(result, tmp_path)).table("reason") == [
            {"round": "1", "client": "1", "reason": "not finite"}
        ]

    def test_what_is_null_is_shown_as_a_dash(self, tmp_path: Path) -> None:
        result = run()
        keys = ("accuracy", "accuracy_min", "loss", "train_loss", "keep_ratio", "flops_ratio")
        result.history[1].update(dict.fromkeys(keys))
        row = Page(written(result, tmp_path)).table("round", "worst")[1]
        assert {row[column] for column in ("accuracy", "worst", "loss", "training loss", "keep ratio")} == {"–"}


@pytest.mark.slow
def test_a_run_that_reported_nothing_still_has_a_report(tmp_path: Path) -> None:
    """Only what every summary holds, and every value that may be null is."""
    may_be_null = ("accuracy", "accuracy_min", "loss", "train_loss", "keep_ratio", "flops_ratio", "seconds")
    result = run()
    for row in result.clients + result.history:
        row.update({key: None for key in (*may_be_null, "final_accuracy", "final_loss") if key in row})
    kept = ("method", "seed", "rounds", "uplink_bytes", "downlink_bytes", "total_bytes", "seconds")
    summary: dict[str, Any] = {key: result.summary[key] for key in kept} | {"accuracy": None, "accuracy_min": None}
    page = Page(written(replace(result, summary=summary), tmp_path))
    assert page.text["h1"] == "spatl"
    assert page.summary["Worst client"] == "–"
