"""The reports of a benchmark: what they say, and that a browser opens them without a network."""

import math
import re

import pytest

from spatl.bench.ablations import add_ablations_
from spatl.bench.plan import make_plan
from spatl.bench.report import write_reports
from spatl.bench.results import collect, run_directory
from spatl.bench.tuning import Pair, Tuned
from tests.support.bench_runs import write_run
from tests.support.browser import Browser, assert_fits

LEVELS = {
    "spatl": (0.9, 5),
    "fedavg": (0.85, 100),
    "fedavg+float16": (0.85, 50),
    "fedrep": (0.88, 90),
    "local": (0.6, 1),
}
HOSTILE = "</pre><script>alert(1)</script>"


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """A benchmark of five methods and three seeds whose accuracies rise to a level of their own."""
    directory = tmp_path_factory.mktemp("bench")
    path = directory / "bench.yaml"
    path.write_text("rounds: 30\nbench: {targets: [0.8, 0.5, 0.95], ablations: {without: {fedrep: a, fedavg: b}}}\n")
    plan = make_plan([path], methods=list(LEVELS))
    for row in plan.rows:
        level, factor = LEVELS[row.label]
        for seed in plan.bench.seeds:
            accuracies = [level * (1 - math.exp(-(number + seed) / 6)) for number in range(31)]
            write_run(
                run_directory(directory, row.label, seed), row.config(seed), accuracies, bytes_each_way=factor * 1000
            )
    stopped = run_directory(directory, "fedrep", 3)
    (stopped / "summary.json").unlink()
    (stopped / "error.json").write_text('{"error": "DivergedError", "message": "the run diverged in round 31"}')
    records, curves = collect(plan, directory)
    add_ablations_(records, plan.bench.ablations)
    tuned = [Tuned("fedavg", {Pair(0.1): 0.5, Pair(0.2): 0.6, Pair(0.4): None}, Pair(0.2))]
    write_reports(plan, records, curves, directory, command=f"spatl bench {HOSTILE}", tuned=tuned)
    return directory


def rows_below(text, heading):
    """The rows of the Markdown table below a heading, by the first column."""
    part = text.split(f"## {heading}\n", 1)[1].split("\n## ", 1)[0]
    lines = [[cell.strip() for cell in line.strip("| ").split(" | ")] for line in part.splitlines() if line[:1] == "|"]
    return {line[0]: dict(zip(lines[0], line, strict=True)) for line in lines[2:]}


@pytest.mark.slow
def test_every_row_is_in_every_table_with_what_it_cost(report):
    text = (report / "bench.md").read_text()
    names = {"SPATL", "FedAvg", "FedAvg (fedavg+float16)", "FedRep", "Training alone"}
    costs = rows_below(text, "Cost of 80.0 %, held for 3 rounds")
    assert costs.keys() == names
    assert rows_below(text, "Accuracy").keys() == names
    assert rows_below(text, "Bytes by what they are").keys() == names
    assert costs["Training alone"]["reached"] == "not reached"
    assert costs["FedAvg"]["ratio to FedAvg"] == "1.00x"
    assert costs["FedAvg (fedavg+float16)"]["ratio to FedAvg"] == "2.00x"
    assert re.fullmatch(r"\d+\.\d\dx \(\d+\.\d\d–\d+\.\d\d\)", costs["SPATL"]["ratio to FedAvg"])
    assert costs["SPATL"]["Δ to FedAvg"].startswith("−")
    assert costs["SPATL"]["ratio to best published"] == costs["SPATL"]["ratio to best compressed"]
    best = "fedavg+float16 (3 of 3 seeds)."
    assert f"reached it. Best compressed: {best} Best published: {best}\n" in text
    assert {row["reached"] for row in rows_below(text, "Cost of 95.0 %, first touch").values()} == {"not reached"}


@pytest.mark.slow
def test_what_the_bytes_are_stands_in_a_table_and_in_pictures(report):
    parts = rows_below((report / "bench.md").read_text(), "Bytes by what they are")
    assert parts["FedAvg"]["of FedAvg's total"] == "100.0 %"
    assert parts["FedAvg (fedavg+float16)"]["of FedAvg's total"] == "50.0 %"
    assert parts["SPATL"]["uplink values"] == "150.0 kB"  # 30 rounds of 4,999 bytes
    assert "SPATL sends 150.0 kB up and 150.0 kB down, 5 % of FedAvg" in (report / "report.html").read_text()
    assert (report / "bytes.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_targets_that_need_no_federation_are_marked(report):
    text = (report / "bench.md").read_text()
    assert "Meaningful: training alone never reached it" in text.split("## Cost of 80.0 %, held", 1)[1][:200]
    assert "Not a meaningful target: training alone reached it" in text.split("## Cost of 50.0 %, held", 1)[1][:200]


@pytest.mark.slow
def test_the_page_says_what_axis_and_shades_are_and_shows_the_loss(report):
    page = (report / "report.html").read_text()
    assert page.count("Shades reach from the lowest to the highest seed.") == 3
    assert page.count("The accuracy axis shows the range that occurs, not all of 0 to 1.") == 3
    assert "<h2>Loss against rounds</h2>" in page


@pytest.mark.slow
def test_reports_state_what_made_them(report):
    for name in ("bench.md", "report.html"):
        text = (report / name).read_text()
        for fact in ("digits", "dirichlet 0.5", "20 clients", "1, 2, 3", "flwr", "torch", "spatl bench", "95 %"):
            assert fact in text, (name, fact)
        assert "the run diverged in round 31" in text
        assert "stopped" in text


@pytest.mark.slow
def test_what_users_write_is_escaped(report):
    page = (report / "report.html").read_text()
    assert HOSTILE not in page
    assert "&lt;script&gt;alert(1)" in page
    assert not re.search(r"<script|javascript:|\bon\w+=|https?://(?!www\.w3\.org/)", page)


@pytest.mark.slow
def test_a_browser_opens_the_report_without_network_or_complaint_and_draws_it(report, tmp_path):
    with Browser(tmp_path / "profile") as browser:
        browser.open(report / "report.html")
        assert browser.visit.requests == [(report / "report.html").as_uri()]
        assert browser.visit.complaints == []
        assert browser.value("document.title").startswith("Cost of accuracy")
        pictures = browser.value(
            "[...document.querySelectorAll('figure svg')].map(s => {const b = s.getBoundingClientRect();"
            "return [b.width, b.height, s.querySelectorAll('path').length]})"
        )
        assert len(pictures) == 7
        assert all(width > 700 and height > 200 and paths > 20 for width, height, paths in pictures)
        assert browser.value("document.querySelectorAll('table').length") >= 10
        for width in (1300, 1000, 600, 360):
            assert_fits(browser, report / "report.html", width)
        assert browser.screenshot().startswith(b"\x89PNG")
        assert browser.pdf().startswith(b"%PDF")


@pytest.mark.slow
def test_the_browser_would_notice_a_request_and_an_error(tmp_path):
    """The check above can fail: a page that breaks every rule of it."""
    page = tmp_path / "bad.html"
    page.write_text(
        "<img src='http://127.0.0.1:9/x.png'><script>console.error('no'); undefinedFunction()</script>",
        encoding="utf-8",
    )
    with Browser(tmp_path / "profile") as browser:
        browser.open(page)
        assert len(browser.visit.requests) == 2
        assert len(browser.visit.complaints) >= 2
