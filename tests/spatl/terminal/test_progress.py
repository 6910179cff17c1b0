"""What shows a run as it goes, at every width, in a pipe and in a notebook."""

import sys
from types import ModuleType

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spatl.config.experiment import ExperimentConfig
from spatl.config.loading import parse_config
from spatl.methods import METHODS
from spatl.terminal.progress import NotebookProgress, TaskLine, progress_of, watched_console
from tests.support.terminals import pipe, shown, terminal, widest_line

ROW = {
    "round": 7, "accuracy": 0.5, "final_accuracy": None, "uplink_bytes": 1_000_000, "downlink_bytes": 500_000,
    "rejected": 2, "missing": 1, "skipped": False, "seconds": 3.0, "training_seconds": 2.0, "selection_seconds": 1.0,
    "decision_seconds": 0.5,
}  # fmt: skip
NOTES = ("accuracy 98.1 %", "2 refused", "3.3 MB", "0:01:23", "selection 54.7 % of training (deciding 15.6 %)")


def drawn(width: int, *, name: str = "SPATL", completed: int = 20, notes: tuple[str, ...] = NOTES) -> str:
    console = terminal(width)
    console.print(TaskLine(name, len(name), "round", completed, 40, notes))
    return shown(console).rstrip("\n")


@pytest.mark.parametrize("width", [60, 80, 120])
@pytest.mark.parametrize("title", sorted({method.title for method in METHODS.values()} | {"training alone"}))
def test_method_bar_round_and_accuracy_are_there_at_every_width(title, width):
    line = drawn(width, name=title)
    assert "round 20/40  accuracy 98.1 %" in line
    assert "━━━" in line
    assert len(line) <= width
    assert line.startswith(title if width >= 80 else title[:16])


@pytest.mark.slow
def test_the_rest_follows_by_importance_as_far_as_there_is_room():
    shown_notes = [[note for note in NOTES if note in drawn(width)] for width in range(38, 200)]
    assert all(list(NOTES[: len(notes)]) == notes for notes in shown_notes)
    assert [len(notes) for notes in shown_notes] == sorted(len(notes) for notes in shown_notes)
    assert shown_notes[0] == [NOTES[0]]
    assert shown_notes[-1] == list(NOTES)


@given(
    st.integers(30, 200), st.text("abc ", min_size=1, max_size=60), st.integers(0, 40),
    st.lists(st.text("xyz", min_size=1, max_size=30), min_size=1, max_size=5),
)  # fmt: skip
def test_a_line_is_one_line(width, name, completed, notes):
    line = drawn(width, name=name, completed=completed, notes=tuple(notes))
    assert "\n" not in line
    assert len(line.rstrip()) <= width


def test_a_live_run_keeps_both_its_lines_at_80_columns():
    config = ExperimentConfig(rounds=40)
    console = terminal(80)
    with progress_of(console, config) as progress:
        progress.on_round(ROW)
        progress.on_round({**ROW, "round": 40, "final_accuracy": 0.0})
        progress.on_round_alone({**ROW, "round": 8, "accuracy": 0.25})
    text = shown(console)
    assert widest_line(text.replace("\r", "\n")) <= 80
    first, second = text.rstrip().splitlines()[-2:]
    assert "SPATL" in first
    assert "round 40/40  accuracy 0.0 %  2 refused  1 missing" in first
    assert second.split()[:2] == ["training", "alone"]
    assert "round  8/40  accuracy 25.0 %" in second


def test_a_pipe_gets_a_line_per_round_that_is_not_broken():
    console = pipe()
    with progress_of(console, ExperimentConfig(rounds=40)) as progress:
        progress.on_round(ROW)
        progress.on_round_alone({**ROW, "decision_seconds": 0.0})
    assert shown(console).splitlines() == [
        "SPATL: round 7/40  accuracy 50.0 %  up 1.0 MB  down 500.0 kB  refused 2  missing 1  "
        "selection 50.0 % of training (deciding 25.0 %)  3.0 s",
        "training alone: round 7/40  accuracy 50.0 %  up 1.0 MB  down 500.0 kB  refused 2  missing 1  3.0 s",
    ]


class Display(ModuleType):
    """As much of IPython.display as is used: what was displayed, and what it became."""

    def __init__(self) -> None:
        super().__init__("IPython.display")
        self.shown: list[str] = []

    def HTML(self, text: str) -> str:  # noqa: N802  # IPython's name
        return text

    def display(self, text: str, *, display_id: bool) -> "Display":
        assert display_id
        self.shown.append(text)
        return self

    def update(self, text: str) -> None:
        self.shown.append(text)


def test_a_notebook_gets_one_output_that_is_renewed(monkeypatch):
    display = Display()
    monkeypatch.setitem(sys.modules, "IPython.display", display)
    config = parse_config({"rounds": 40})
    with NotebookProgress(config) as progress:
        progress.on_round(ROW)
        progress.on_round_alone({**ROW, "round": 8})
    started, first, last = display.shown
    assert "starting" in started
    assert '<progress value="7" max="40">' in first
    assert "round 7/40, accuracy 50.0 %, 2 refused, 1 missing, 1.5 MB" in first
    assert "training alone" not in first
    assert "training alone" in last
    assert "round 8/40, accuracy 50.0 %" in last


def test_nobody_watches_a_test():
    assert watched_console() is None
