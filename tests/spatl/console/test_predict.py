"""Tests of `spatl predict`."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from spatl.artifacts.loader import Classifier
from spatl.console.main import main
from tests.support import exports

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An exported model, which nobody may change."""
    return exports.write(tmp_path_factory.mktemp("exported") / "model")


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Two images, and one that is none."""
    for number, pixels in enumerate(exports.images(2, seed=9).numpy()):
        Image.fromarray(pixels.transpose(1, 2, 0)).save(tmp_path / f"{number}.png")
    (tmp_path / "broken.png").write_bytes(b"no image")
    return tmp_path


def rows(output: str) -> list[dict]:
    return [json.loads(line) for line in output.splitlines()]


@pytest.mark.slow
def test_an_object_for_each_image_and_the_others_where_one_is_broken(
    model: Path, pictures: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["predict", str(model), str(pictures), "--json"]) == 2
    output = capsys.readouterr()
    first, second, broken = rows(output.out)
    expected = Classifier(model).probabilities(exports.images(2, seed=9).numpy())
    for found, shares in zip((first, second), expected, strict=True):
        order = np.argsort(-shares)
        assert [each["class"] for each in found["classes"]] == [exports.CLASSES[each] for each in order]
        assert [each["probability"] for each in found["classes"]] == pytest.approx(shares[order])
    assert broken["image"] == str(pictures / "broken.png")
    assert "not an image that can be read" in broken["error"]
    assert output.err == "spatl: 1 of 3 images could not be used; the others were predicted\n"


@pytest.mark.slow
def test_a_table_of_names_and_a_line_for_what_is_broken(
    model: Path, pictures: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["predict", str(model / "model.onnx"), str(pictures)]) == 2
    output = capsys.readouterr()
    header, *lines = output.out.splitlines()
    assert header.split() == ["image", "class", "1", "class", "2", "class", "3"]
    assert [Path(line.split()[0]).name for line in lines] == ["0.png", "1.png"]
    assert all("%" in line for line in lines)
    assert [line for line in output.err.splitlines() if "broken.png: not an image" in line]


@pytest.mark.parametrize("arguments", [["--int8"], ["--batch", "1"], ["--batch", "64", "--threads", "2"]])
def test_options_change_how_and_not_what(
    model: Path, pictures: Path, capsys: pytest.CaptureFixture[str], arguments: list[str]
) -> None:
    (pictures / "broken.png").unlink()
    found = []
    for more in ([], arguments):
        assert main(["predict", str(model), str(pictures), "--json", *more]) == 0
        found.append(rows(capsys.readouterr().out))
    probabilities = [[row["classes"][0]["probability"] for row in each] for each in found]
    assert probabilities[0] == pytest.approx(probabilities[1], abs=0.1 if arguments == ["--int8"] else 1e-5)
    assert (probabilities[0] != probabilities[1]) == (arguments == ["--int8"])


def test_a_file_in_8_bits_is_taken_where_it_is_named(
    model: Path, pictures: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = []
    for named in ([str(model / "model-int8.onnx")], [str(model), "--int8"]):
        assert main(["predict", *named, str(pictures / "0.png"), "--json"]) == 0
        found.append(capsys.readouterr().out)
    assert found[0] == found[1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere", "x.png"], "nowhere is no directory: expected one that `spatl export` wrote"),
        (["MODEL", "nowhere.png"], "nowhere.png is not there"),
        (["EMPTY", "x.png"], "holds no exported model of this kind: model.json is not there"),
        (["MODEL", "x.png", "--batch", "0"], "argument --batch: expected 1 or more, got 0"),
        (["MODEL", "x.png", "--tensorboard", "1"], "unknown option --tensorboard"),
        (["MODEL"], "the following arguments are required: INPUT"),
    ],
)
def test_a_mistake_is_one_line(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    places = {"MODEL": str(model), "EMPTY": str(tmp_path)}
    try:
        status: object = main(["predict", *(places.get(each, each) for each in arguments)])
    except SystemExit as ended:
        status = ended.code
    output = capsys.readouterr()
    assert status == 2
    assert output.out == ""
    assert output.err.count("\n") == 1
    assert message in output.err


@pytest.mark.slow
def test_it_runs_where_pytorch_cannot_be_imported(model: Path, pictures: Path) -> None:
    code = (
        "import sys\n"
        "class Blocker:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.partition('.')[0] in {'torch', 'flwr', 'onnx', 'safetensors', 'pydantic'}:\n"
        "            raise ImportError(f'{name} is blocked')\n"
        "sys.meta_path.insert(0, Blocker())\n"
        "from spatl.console.main import main\n"
        "sys.exit(main(sys.argv[1:]))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "predict", str(model), str(pictures / "0.png"), "--json"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    with torch.no_grad():
        logits = exports.network()(exports.normalised(exports.images(2, seed=9)))
    best = exports.CLASSES[int(logits[0].argmax())]
    assert rows(done.stdout)[0]["classes"][0]["class"] == best


def test_both_parsers_know_the_same_options(capsys: pytest.CaptureFixture[str]) -> None:
    """`spatl predict` has a parser of its own; that of all commands is asked where an option stands before it."""
    helps = []
    for arguments in (["predict", "--help"], ["--debug", "predict", "--help"]):
        with pytest.raises(SystemExit):
            main(arguments)
        helps.append(sorted(line.split()[0] for line in capsys.readouterr().out.splitlines() if line.startswith("  -")))
    assert helps[0] == helps[1]
    assert "--int8" in helps[0]
