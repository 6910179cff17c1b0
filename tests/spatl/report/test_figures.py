import math
import struct
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import matplotlib
import pytest
from hypothesis import given
from hypothesis import strategies as st

from spatl.errors import SpatlError
from spatl.report.figures import curves_svg, draw_curves, draw_loss_per_round, final_accuracies, new_figure, run_title
from spatl.report.result import RunResult
from spatl.runs.records import bytes_on_arrival, is_number
from spatl.runs.text import human_bytes

SVG = "{http://www.w3.org/2000/svg}"
PARTS = {"values": 1000, "indices": 10, "control": 0, "other": 90}
NO_BYTES = dict.fromkeys(PARTS, 0)


def round_row(number: int, **changes: Any) -> dict[str, Any]:
    return {
        "round": number,
        "accuracy": 0.5,
        "accuracy_min": 0.25,
        "uplink_bytes": 1100,
        "downlink_bytes": 1100,
        "uplink": PARTS,
        "downlink": PARTS,
        "final_accuracy": None,
        "final_accuracy_min": None,
    } | changes


def result(
    history: list[dict[str, Any]], clients: dict[int, float | None] | None = None, *, alone: Any = None, **summary: Any
) -> RunResult:
    rows = [{"client": client, "final_accuracy": accuracy} for client, accuracy in (clients or {}).items()]
    return RunResult(Path(), {"method": "spatl", "seed": 1} | summary, history, rows, alone)


def finished_run(num_rounds: int, num_clients: int) -> RunResult:
    history = [round_row(number, accuracy=number / (num_rounds + 1)) for number in range(1, num_rounds + 1)]
    history[-1] |= {"final_accuracy": 0.9, "final_accuracy_min": 0.7}
    return result(
        history,
        {client: 0.7 + 0.3 * client / num_clients for client in range(num_clients)},
        alone={"accuracy": 0.8, "clients": {str(client): 0.8 for client in range(num_clients)}},
        title="SPATL",
        data="digits",
        num_clients=num_clients,
    )


def png_size(path: Path) -> tuple[int, int]:
    content = path.read_bytes()
    assert content.startswith(b"\x89PNG\r\n\x1a\n")
    width, height = struct.unpack(">II", content[16:24])
    return width, height


UNUSUAL_RUNS = {
    "no round": result([]),
    "one round": finished_run(num_rounds=1, num_clients=1),
    "nothing was reported": result(
        [round_row(1, accuracy=None, accuracy_min=None), round_row(2, accuracy=None, accuracy_min=None)], {0: None}
    ),
    "a round without replies": result([round_row(1), round_row(2, accuracy=None, accuracy_min=None), round_row(3)]),
    "not finite": result(
        [round_row(1, accuracy=math.nan), round_row(2, accuracy=math.inf)], {0: math.nan}, alone={"accuracy": None}
    ),
    "no bytes": result(
        [round_row(1, uplink=NO_BYTES, downlink=NO_BYTES, uplink_bytes=0, downlink_bytes=0)], {0: 1.0, 1: 0.0}
    ),
    "uplink only, and one client alone": result(
        [round_row(1, downlink=NO_BYTES, downlink_bytes=0)],
        {0: 0.5, 1: 0.5},
        alone={"accuracy": 0.5, "clients": {"0": 0.5}},
    ),
    "a title that looks like mathematics": result([round_row(1)], title="a $\\frac$ b_c^"),
}


@pytest.fixture(scope="module")
def svg() -> str:
    return curves_svg(finished_run(num_rounds=3, num_clients=3))


def test_the_loss_is_drawn_as_it_was_recorded() -> None:
    history = [round_row(1, loss=2.0, train_loss=1.5), round_row(2, loss=None, train_loss=1.0, final_loss=0.5)]
    with new_figure(5, 5) as figure:
        axes = figure.subplots()
        draw_loss_per_round(axes, result(history))
        lines = {line.get_label(): line.get_xydata().tolist() for line in axes.get_lines()}
    assert lines["test, on arrival"][0] == [1.0, 2.0]
    assert math.isnan(lines["test, on arrival"][1][1])
    assert lines["training"] == [[1.0, 1.5], [2.0, 1.0]]
    assert lines["test, at the end"] == [[3.0, 0.5]]


@pytest.mark.slow
def test_the_picture_is_a_png_of_1400_by_1300_pixels(tmp_path: Path) -> None:
    draw_curves(finished_run(num_rounds=20, num_clients=20), tmp_path / "curves.png")
    assert png_size(tmp_path / "curves.png") == (1400, 1300)
    assert (tmp_path / "curves.png").stat().st_size > 20_000


@pytest.mark.slow
def test_the_picture_can_be_drawn_for_many_rounds_and_clients(tmp_path: Path) -> None:
    draw_curves(finished_run(num_rounds=300, num_clients=100), tmp_path / "curves.png")
    assert png_size(tmp_path / "curves.png") == (1400, 1300)


@pytest.mark.slow
@pytest.mark.parametrize("name", UNUSUAL_RUNS)
def test_an_unusual_run_is_drawn_as_well(name: str) -> None:
    assert ElementTree.fromstring(curves_svg(UNUSUAL_RUNS[name])).tag == f"{SVG}svg"


@pytest.mark.slow
def test_the_svg_is_one_element_without_prolog_or_comments(svg: str) -> None:
    assert svg.startswith("<svg")
    assert svg.rstrip().endswith("</svg>")
    assert "<!" not in svg
    assert ElementTree.fromstring(svg).tag == f"{SVG}svg"


@pytest.mark.slow
def test_one_run_gives_one_svg(svg: str) -> None:
    assert curves_svg(finished_run(num_rounds=3, num_clients=3)) == svg


@pytest.mark.slow
def test_the_svg_has_no_background_and_takes_the_colour_of_the_page(svg: str) -> None:
    assert "fill: #ffffff" not in svg
    assert "fill: currentColor" in svg


@pytest.mark.slow
def test_drawing_neither_uses_pyplot_nor_changes_matplotlibs_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)  # importing it raises an error
    names = set(matplotlib.rcParams) - {"backend"}  # reading that one imports pyplot
    before = {name: matplotlib.rcParams[name] for name in names}
    curves_svg(finished_run(num_rounds=1, num_clients=1))
    assert {name: matplotlib.rcParams[name] for name in names} == before


def test_without_matplotlib_the_error_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(SpatlError, match=r"pip install 'spatl\[simulation\]'"):
        draw_curves(finished_run(num_rounds=1, num_clients=1), tmp_path / "curves.png")


@pytest.mark.parametrize(
    ("num_bytes", "text"),
    [
        (0, "0 B"),
        (812, "812 B"),
        (999, "999 B"),
        (1000, "1.0 kB"),
        (1234, "1.2 kB"),
        (3_400_000, "3.4 MB"),
        (999_949, "999.9 kB"),
        (999_950, "1.0 MB"),
        (5 * 10**18, "5000.0 PB"),
        (-1234, "-1.2 kB"),
    ],
)
def test_bytes_are_written_in_decimal_units(num_bytes: int, text: str) -> None:
    assert human_bytes(num_bytes) == text


@given(st.integers(0, 10**17))
def test_written_bytes_are_right_to_a_twentieth_of_their_unit(num_bytes: int) -> None:
    amount, unit = human_bytes(num_bytes).split()
    size = 1000 ** ("B", "kB", "MB", "GB", "TB", "PB").index(unit)
    assert abs(float(amount) * size - num_bytes) <= 0.0501 * size
    assert float(amount) < 1000


def test_an_accuracy_on_arrival_costs_all_earlier_rounds_and_its_own_downlink() -> None:
    """Round 1: 10 down. Round 2: 10 + 1 of round 1, 20 down. Round 3: 33 of rounds 1 and 2, 40 down."""
    sizes = [(1, 10), (2, 20), (4, 40)]
    history = [{"uplink_bytes": up, "downlink_bytes": down} for up, down in sizes]
    assert bytes_on_arrival(history) == [10, 31, 73]


def test_clients_without_a_final_accuracy_are_left_out() -> None:
    assert final_accuracies(result([], {0: 0.5, 1: None, 2: math.nan, 3: 0.0})) == {0: 0.5, 3: 0.0}


def test_a_run_is_called_by_its_title_and_data_or_by_its_method() -> None:
    assert run_title({"method": "spatl", "title": "SPATL", "data": "digits"}) == "SPATL on digits"
    assert run_title({"method": "spatl"}) == "spatl"


def test_numbers_are_there_and_finite() -> None:
    assert [is_number(value) for value in (0, 0.5, None, math.nan, math.inf, "1")] == [True, True] + 4 * [False]
