"""What the pictures of a benchmark show."""

import pytest
from matplotlib.image import imread as read_png

from spatl.bench.costs import Point
from spatl.bench.figures import (
    STRETCHED,
    axis_words,
    curve_words,
    draw_accuracy,
    draw_curves,
    draw_parts,
    loss_svg,
    mean_losses,
    part_words,
)
from spatl.bench.results import Curve, PartsRow
from spatl.report.figures import legend_above, new_figure


def curve(label, seed, accuracies, *, ended=True, cost=100):
    points = tuple(Point(number, cost * (number + 1), float(number), value) for number, value in enumerate(accuracies))
    return Curve(label, seed, points, {"0": accuracies[-1]} if ended else {})


CURVES = {
    "SPATL": [curve("spatl", 1, [0.1, 0.4, 0.8]), curve("spatl", 2, [0.3, 0.6, 0.6]),
              curve("spatl", 3, [0.1, 0.0], ended=False)],
    "FedAvg": [curve("fedavg", 1, [0.1, 0.2], ended=False, cost=1000)],
    "Training alone": [curve("local", 1, [0.1, 0.3, 0.5], cost=1)],
}  # fmt: skip


def drawn(against):
    with new_figure(8, 5) as figure:
        axes = figure.subplots()
        draw_accuracy(axes, CURVES, against=against, targets=[(0.7, True), (0.2, False)], alone="Training alone")
        return {line.get_label(): line.get_xydata().tolist() for line in axes.get_lines()}


def test_a_curve_is_the_mean_of_the_seeds_that_ended_and_says_how_many():
    lines = drawn("rounds")
    assert lines["SPATL (2 of 3 seeds)"] == [[0.0, pytest.approx(0.2)], [1.0, 0.5], [2.0, pytest.approx(0.7)]]


def test_a_row_of_which_no_seed_ended_is_drawn_as_far_as_it_went():
    assert drawn("rounds")["FedAvg"] == [[0.0, 0.1], [1.0, 0.2]]


def test_against_bytes_training_alone_is_level_because_it_needs_none():
    lines = drawn("bytes")
    assert {place[1] for place in lines["Training alone, at the end"]} == {0.5}
    assert [place[0] for place in lines["SPATL (2 of 3 seeds)"]] == [100.0, 200.0, 300.0]
    assert drawn("seconds")["Training alone"][-1] == [2.0, 0.5]


def panel(curves):
    """The labels in the legend of a panel against rounds, and that of its axis."""
    with new_figure(8, 5) as figure:
        axes = figure.subplots()
        draw_accuracy(axes, curves, against="rounds", targets=[(0.7, True)], alone=None)
        return axes.get_legend_handles_labels()[1], axes.get_ylabel()


def test_the_legend_says_what_shades_and_dotted_lines_are():
    labels, _ = panel(CURVES)
    assert labels[-2:] == ["targets", "lowest to highest seed"]
    assert "Shades reach from the lowest to the highest seed." in axis_words(CURVES)
    one_seed = {title: own[:1] for title, own in CURVES.items()}
    assert "lowest to highest seed" not in panel(one_seed)[0]
    assert "Shades" not in axis_words(one_seed)
    many = {f"row {number}": CURVES["SPATL"] for number in range(7)}
    assert "lowest to highest seed" not in panel(many)[0]
    assert "Shades" not in axis_words(many)


@pytest.mark.parametrize(("best", "stretched"), [(0.9, False), (0.91, True)])
def test_an_axis_that_is_stretched_says_so(best, stretched):
    curves = {"SPATL": [curve("spatl", 1, [0.1, best])]}
    assert (panel(curves)[1] == STRETCHED) == stretched
    assert ("stretched towards 1" in axis_words(curves)) == stretched
    assert ("shows the range that occurs" in axis_words(curves)) != stretched


def with_losses(label, seed, losses):
    points = tuple(Point(number, 1, 1.0, 0.5, loss) for number, loss in enumerate(losses))
    return Curve(label, seed, points, {"0": 0.5})


def test_the_loss_is_the_mean_over_the_seeds_where_all_measured_it():
    curves = {"SPATL": [with_losses("spatl", 1, [2.0, 1.0, None]), with_losses("spatl", 2, [1.0, 0.5, 0.25])],
              "FedAvg": [with_losses("fedavg", 1, [None, None])]}  # fmt: skip
    ((title, (rounds, losses, _)),) = mean_losses(curves).items()
    assert (title, rounds, losses) == ("SPATL", [0, 1], [1.5, 0.75])
    assert loss_svg(curves).startswith("<svg")
    assert loss_svg({"FedAvg": curves["FedAvg"]}) == ""


def test_the_words_say_where_every_row_ends():
    assert "Training alone ends at 0.500 after 3 B" in curve_words(CURVES)


def test_near_one_the_axis_gives_every_halving_of_the_errors_the_same_room():
    """0.8, 0.9 and 0.95 stand about as far apart as each other; below 0.9 the axis stays as it is."""
    places = {}
    for best in (0.6, 0.96):
        curves = {"SPATL": [curve("spatl", 1, [0.1, 0.5, best])]}
        with new_figure(8, 5) as figure:
            axes = figure.subplots()
            draw_accuracy(axes, curves, against="rounds", targets=[], alone=None)
            figure.canvas.draw()
            places[best] = [float(axes.transData.transform((0, accuracy))[1]) for accuracy in (0.8, 0.9, 0.95)]
            assert all(0.0 <= end <= 1.01 for end in axes.get_ylim())
    low, middle, high = places[0.6]
    assert middle - low == pytest.approx(2 * (high - middle), rel=0.01)
    low, middle, high = places[0.96]
    assert middle - low == pytest.approx(high - middle, rel=0.1)


FEDAVG = PartsRow("fedavg", "FedAvg", *({"values": 480.0, "indices": 0.0, "control": 0.0, "other": 20.0},) * 2)
SPATL = PartsRow(
    "spatl",
    "SPATL",
    uplink={"values": 100.0, "indices": 50.0, "control": 0.0, "other": 50.0},
    downlink={"values": 100.0, "indices": 0.0, "control": 100.0, "other": 0.0},
)
STOPPED = PartsRow("scaffold", "SCAFFOLD", {}, {})


def bars(table):
    """Start and end of every bar that is drawn, and the texts, by the row's name."""
    with new_figure(8, 5) as figure:
        axes = figure.subplots()
        draw_parts(axes, table)
        names = [label.get_text() for label in axes.get_yticklabels()]
        found = {name: [] for name in names}
        for bar in axes.patches:
            if bar.get_width():
                found[names[round(bar.get_y() + bar.get_height() / 2)]] += [bar.get_x(), bar.get_x() + bar.get_width()]
        texts = {name: [] for name in names}
        for each in axes.texts:
            texts[names[each.xy[1]]].append(each.get_text())
        return found, texts, axes.get_xlabel()


def test_bytes_are_stacked_by_part_downlink_left_uplink_right_in_shares_of_all_that_fedavg_sends():
    """FedAvg sends 500 each way, 1000 in all. SPATL: up 100, 50, 50 of them; down 100 and 100."""
    drawn, texts, axis = bars([SPATL, FEDAVG])
    assert drawn["SPATL"] == pytest.approx([0, 0.1, 0.1, 0.15, 0.15, 0.2, 0, -0.1, -0.1, -0.2])
    assert drawn["FedAvg"] == pytest.approx([0, 0.48, 0.48, 0.5, 0, -0.48, -0.48, -0.5])
    assert texts == {"SPATL": ["20 %", "20 %"], "FedAvg": ["50 %", "50 %"]}
    assert "share of all bytes of FedAvg" in axis
    assert part_words([SPATL, FEDAVG]).startswith("SPATL sends 200 B up and 200 B down, 40 % of FedAvg; ")


def test_without_a_fedavg_that_ended_the_unit_is_bytes():
    drawn, texts, axis = bars([SPATL, PartsRow("fedavg", "FedAvg", {}, {})])
    assert drawn["SPATL"][:2] == [0, 100]
    assert texts == {"SPATL": ["200 B", "200 B"], "FedAvg": ["no run ended"]}
    assert "bytes of a run" in axis
    assert part_words([SPATL]) == "SPATL sends 200 B up and 200 B down."


def test_a_row_of_which_no_run_ended_keeps_its_place_and_has_no_bar_and_says_so():
    drawn, texts, _ = bars([SPATL, STOPPED, FEDAVG])
    assert list(drawn) == ["FedAvg", "SCAFFOLD", "SPATL"]  # from below
    assert drawn["SCAFFOLD"] == []
    assert texts["SCAFFOLD"] == ["no run ended"]


@pytest.mark.slow
def test_the_legend_of_many_rows_lies_within_the_picture(tmp_path):
    """Fourteen rows with long names: the outermost columns of pixels are empty, as they are around any picture."""
    names = [f"FedAvg with a calibrated predictor (fedavg-calibrated-{number})" for number in range(14)]
    curves = {name: [curve(name, 1, [0.1, 0.4, 0.8])] for name in names}
    draw_curves(curves, tmp_path / "curves.png", title="Cost of accuracy", targets=[(0.7, True)], alone=None)
    pixels = read_png(tmp_path / "curves.png")
    assert pixels.shape[:2] == (700, 1600)
    for edge in (pixels[:, :3], pixels[:, -3:], pixels[:2], pixels[-2:]):
        assert (edge == pixels[0, 0]).all()
    assert not (pixels == pixels[0, 0]).all()


def test_a_legend_has_the_columns_that_are_asked_for_where_they_fit():
    found = {}
    for length in (3, 22, 400):
        with new_figure(12, 5) as figure:
            axes = figure.subplots()
            for number in range(8):
                axes.plot([0, 1], [0, number], label=f"{number}".ljust(length, "m"))
            legend_above(figure, axes, columns=4)
            figure.canvas.draw()
            found[length] = len({round(text.get_window_extent().x0) for text in figure.legends[0].get_texts()})
    assert found[3] == 4
    assert 1 < found[22] < 4
    assert found[400] == 1
