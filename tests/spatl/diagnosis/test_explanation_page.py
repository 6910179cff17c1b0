"""The page of an explanation, as it is read."""

import base64
import re
from collections import Counter
from dataclasses import replace
from html import escape
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import nn

from spatl.data import Examples
from spatl.diagnosis.explanation import Explanation, explain
from spatl.diagnosis.explanation_page import explanation_page
from spatl.diagnosis.mistakes import ExplainSettings, Maps
from spatl.diagnosis.scores import SCORES
from spatl.diagnosis.subject import Subject, read_subject
from spatl.json_files import to_json
from spatl.saliency.filters import filters_of
from tests.support.browser import Browser, assert_fits
from tests.support.html_pages import Page

HOSTILE = """<script>alert("1")</script>'"&</title></pre>-->{title}%s<img src="https://evil.example/x.png">"""
SETTINGS = ExplainSettings(num_examples=2, num_groups=3, top_k=4)
DIAGNOSIS = {
    "clients": [
        {"client": 0, "num_examples": 9, "accuracy": 0.5, "verdict": {"text": HOSTILE},
         "scores": {"mean_z": {"value": 0.25, "place": 4.5}, "loss": {"value": None, "place": None}}},
        {"client": 1, "num_examples": 8, "accuracy": 0.75, "verdict": {"text": "nothing found"}, "scores": {}},
    ],
    "blind": [HOSTILE],
}  # fmt: skip


def silent(what: str, done: int, total: int) -> None:
    pass


@pytest.fixture(scope="module")
def explained(explained_run: Path) -> tuple[Explanation, Maps, Subject]:
    """The explanation of a client's model, with what its page needs."""
    subject = read_subject(explained_run, client=1, split="test")
    return (*explain(subject, SETTINGS, tell=silent), subject)


def page_of(explained: tuple[Explanation, Maps, Subject], **changes: Any) -> str:
    explanation, maps, subject = explained
    return explanation_page(replace(explanation, **changes), maps, subject, command="spatl explain RUN")


def named(explained: tuple[Explanation, Maps, Subject], names: tuple[str, ...], **changes: Any) -> str:
    explanation, maps, subject = explained
    subject = replace(subject, description=subject.description.named(class_names=names))
    return page_of((replace(explanation, class_names=names), maps, subject), **changes)


@pytest.mark.slow
def test_the_page_is_whole_and_has_three_pictures_with_words_for_each_example(explained) -> None:
    text = page_of(explained)
    page, (explanation, _, subject) = Page(text), explained
    shown = [each for group in explanation.mistakes.groups for each in group.examples]
    images = [attributes for tag, attributes in page.tags if tag == "img"]
    assert len(images) == 3 * len(shown) > 0
    assert all(each["alt"] for each in images)
    for each in images:
        kind, _, data = (each["src"] or "").partition(",")
        assert kind == "data:image/png;base64"
        with Image.open(BytesIO(base64.b64decode(data, validate=True))) as image:
            assert image.size == tuple(subject.shown.inputs.shape[:1:-1])
    assert page.text["h1"] == "What the model of client 1 gets wrong"
    assert [name for name, number in Counter(v["id"] for _, v in page.tags if "id" in v).items() if number > 1] == []


@pytest.mark.slow
def test_the_page_refers_to_nothing_outside_and_runs_nothing(explained) -> None:
    text = page_of(explained)
    assert re.findall(r"https?:|@import|url\(", text) == []
    for tag, attributes in Page(text).tags:
        assert tag not in ("script", "link", "iframe", "object", "form")
        for name, value in attributes.items():
            assert not name.startswith("on")
            assert name != "src" or (value or "").startswith("data:image/png;base64,")
            assert name not in ("srcset", "data", "href")
    assert "default-src 'none'; style-src 'unsafe-inline'; img-src data:" in text


def test_the_tables_say_what_the_explanation_does(explained) -> None:
    page, (explanation, *_) = Page(page_of(explained)), explained
    mistakes, names = explanation.mistakes, explanation.class_names
    rows = page.table("true class", "taken for", "errors")
    assert [(row["true class"], row["taken for"], row["errors"]) for row in rows] == [
        (names[group.true], names[group.predicted], str(group.num_errors)) for group in mistakes.groups
    ]
    assert page.summary["Wrong"].startswith(f"{mistakes.num_errors} (")
    (layers,) = [table for table in page.tables if table[0][:3] == ["layer", "filters", "of all"]]
    assert [row[0] for row in layers[1:]] == [each.layer for each in mistakes.layers]
    ways = [row["switched off"] for row in _all_tables(page, "switched off")[0]]
    assert ways == [each.way for each in mistakes.switching]
    assert len(_all_tables(page, "trained")) == len(_all_tables(page, "mean z")) == len(mistakes.groups)
    standing = page.table("class", "share in the federation")
    assert [int(row["examples"]) for row in standing] == [each.own for each in explanation.standing.classes]
    sent = page.table("channels of", "number")
    assert [row["channels of"] for row in sent] == [group.name for group in explanation.choices.groups]


def _all_tables(page: Page, column: str) -> list[list[dict[str, str]]]:
    found = [table for table in page.tables if column in table[0]]
    return [[dict(zip(table[0], row, strict=True)) for row in table[1:]] for table in found]


def test_hostile_text_is_shown_and_does_nothing(explained) -> None:
    explanation = explained[0]
    names = tuple(f"{HOSTILE}{number}" for number in range(len(explanation.class_names)))
    about = {**explanation.about, "run": HOSTILE, "data": HOSTILE, "model": HOSTILE, "versions": {HOSTILE: HOSTILE}}
    text = named(explained, names, about=about, notes=(HOSTILE,), diagnosis=DIAGNOSIS)
    page = Page(text)
    assert "<script" not in text
    assert "evil.example" in page.text["p"]
    assert {tag for tag, _ in page.tags} == {tag for tag, _ in Page(page_of(explained)).tags}
    assert all((values["src"] or "").startswith("data:") for tag, values in page.tags if tag == "img")
    assert escape(HOSTILE) in text


def test_the_diagnosis_is_shown_where_there_is_one_and_said_how_to_get_elsewhere(explained) -> None:
    with_it = Page(page_of(explained, diagnosis=DIAGNOSIS))
    first, second = with_it.table("client", "verdict")
    assert (first["verdict"], first["mean_z"], first["loss"]) == (HOSTILE, "0.25 (+4.5)", "–")
    assert (second["accuracy"], second["mean_z"], second["verdict"]) == (
        "75.0\N{NO-BREAK SPACE}%",
        "–",
        "nothing found",
    )
    assert second["client"] == "1 (this one)"
    assert f"mean_z: {SCORES['mean_z'].meaning}." in with_it.text["li"]
    assert f"Not seen: {HOSTILE}." in with_it.text["li"]
    assert f"spatl diagnose {explained[2].run}" in Page(page_of(explained, diagnosis=None)).text["p"]


@pytest.mark.slow
def test_a_model_without_mistakes_says_so_plainly(explained_run: Path) -> None:
    subject = read_subject(explained_run)
    with torch.no_grad():
        right = Examples(subject.shown.inputs, subject.network(subject.shown.inputs).argmax(1))
    subject = replace(subject, usual=right, shown=right)
    page = Page(explanation_page(*explain(subject, SETTINGS, tell=silent), subject, command="spatl explain RUN"))
    assert "There are none: the model is right on all" in page.text["p"]
    assert "img" not in [tag for tag, _ in page.tags]
    assert "Group by group" not in page.text["h2"]


class Attentive(nn.Module):
    """A network whose logits look at each other, by what PyTorch has no second derivative of on the CPU."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        logits = self.inner(images)[:, None, :, None]
        return nn.functional.scaled_dot_product_attention(logits, logits, logits)[:, 0, :, 0] + logits[:, 0, :, 0]


@pytest.mark.slow
def test_a_network_without_a_second_derivative_has_no_maps_and_all_else(explained_run: Path) -> None:
    subject = read_subject(explained_run)
    network = Attentive(subject.network).eval()
    subject = replace(subject, network=network, filters=filters_of(network))
    explanation, maps = explain(subject, SETTINGS, tell=silent)
    assert maps == {}
    assert any("no input maps" in note for note in explanation.notes)
    page = Page(explanation_page(explanation, maps, subject, command="spatl explain RUN"))
    shown = [each for group in explanation.mistakes.groups for each in group.examples]
    assert [tag for tag, _ in page.tags].count("img") == len(shown)
    assert "Beside each picture" not in page.text["p"]


def test_numbers_are_all_in_the_json_and_finite(explained) -> None:
    content = explained[0].to_json()
    assert content["format"] == 1
    assert "null" not in to_json({"mistakes": content["mistakes"]["groups"]})
    assert content["mistakes"]["groups"][0]["examples"][0]["neighbours"][0].keys() == {
        "place", "true", "predicted", "cosine",
    }  # fmt: skip


@pytest.mark.slow
def test_a_browser_opens_it_at_any_width_without_a_request_or_a_complaint(explained, tmp_path: Path) -> None:
    names = tuple("a rather long name of a class "[: 3 * number + 1] for number in range(10))
    long_name = ("verylongword" * 12, *names[1:])
    path = tmp_path / "explanation.html"
    path.write_text(named(explained, long_name, diagnosis=DIAGNOSIS), encoding="utf-8")
    with Browser(tmp_path / "profile") as browser:
        for width in (1300, 1000, 600, 360):
            assert_fits(browser, path, width)
            shown = "[...document.images].map(e => e.complete && e.naturalWidth > 0 && e.alt.length > 0)"
            assert set(browser.value(shown)) == {True}
        assert browser.visit.complaints == []
        outside = {each for each in browser.visit.requests if not each.startswith("data:")}
        assert outside == {path.as_uri()}
        assert browser.pdf().startswith(b"%PDF")
