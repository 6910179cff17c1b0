"""`spatl show`: whole and readable at every width, and in a pipe."""

import pytest

from spatl.config.device import device_text
from spatl.config.settings import all_settings
from spatl.console.choices import SHOWN
from spatl.console.main import main
from spatl.console.show import LISTINGS
from tests.support.terminals import as_terminal, widest_line, words_of

MEASURED = ("codec-times", "cold-start")  # which take seconds, and are of the machine


@pytest.mark.slow
@pytest.mark.parametrize("width", [60, 80, 120, None])
@pytest.mark.parametrize("what", [what for what in LISTINGS if what not in MEASURED])
def test_every_word_of_a_list_is_shown_whole(what, width, capsys, monkeypatch):
    if width is not None:
        as_terminal(monkeypatch, width)
    assert main(["show", what]) == 0
    text = capsys.readouterr().out
    assert "…" not in text
    printed = set(words_of(text))
    rows = list(LISTINGS[what].rows())
    assert {word for row in rows for cell in row for word in cell.split()} <= printed
    if width is None:
        assert text.count("\n") == len(rows) + 2
        assert "│" not in text
    else:
        assert widest_line(text) <= width


@pytest.mark.parametrize("width", [60, 80, 120, None])
def test_every_setting_is_shown_with_default_and_meaning(width, capsys, monkeypatch):
    if width is not None:
        as_terminal(monkeypatch, width)
    assert main(["show", "settings"]) == 0
    text = capsys.readouterr().out
    printed = " ".join(words_of(text))
    for setting in all_settings():
        assert f"{setting.key} = {' '.join(setting.default.split())}" in printed
        assert setting.meaning in printed
    if width is not None:
        assert widest_line(text) <= width
    else:
        assert "\n  training.local_epochs = 2  (a whole number, at least 1)\n" in text


def test_settings_are_shown_by_section(capsys):
    assert main(["show", "settings", "training"]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("training: Local training of a client in one round.\n")
    assert "training.learning_rate = 0.1; 0.02 with spatl, " in printed
    assert "server." not in printed


def test_lines_of_a_list_are_shown_by_name(capsys):
    assert main(["show", "methods", "fedavg", "scaffold"]) == 0
    printed = capsys.readouterr().out
    assert [line.split()[0] for line in printed.splitlines()[2:]] == ["fedavg", "scaffold"]


@pytest.mark.parametrize(
    "what",
    ["methods", "models", "datasets", "partitioners", "selectors", "codecs", "losses", "metrics", "aggregation-rules"],
)
def test_a_list_says_how_one_of_your_own_is_named(what, capsys, monkeypatch):
    as_terminal(monkeypatch, 80)
    assert main(["show", what]) == 0
    door = LISTINGS[what].door
    assert f'"{door.form}" names one of your own (configs: {door.setting}; docs/extending.md)' in " ".join(
        capsys.readouterr().out.split()
    )


@pytest.mark.parametrize("what", ["methods", "settings", "configs"])
def test_an_unknown_name_is_one_line_and_status_2(what, capsys):
    assert main(["show", what, "nothing-of-this-name"]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1


def test_everything_there_is_to_show_can_be_named():
    assert (*LISTINGS, "settings", "device") == SHOWN


def test_a_devices_file_is_shown_as_it_is_made(capsys):
    assert main(["show", "device"]) == 0
    assert capsys.readouterr().out == device_text()
    assert main(["show", "device", "limits"]) == 2
    assert "device is one file, shown whole: leave out limits" in capsys.readouterr().err
