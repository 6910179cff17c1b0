"""The examples of docs/models.md run as they stand there."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from spatl import run
from tests.support.federations import tiny_config

PAGE = Path(__file__).parents[3] / "docs" / "models.md"
NETWORK = """
from torch import nn

def make_network(num_classes=10, in_channels=1, width=6):
    return nn.Sequential(nn.Conv2d(in_channels, width, 3), nn.BatchNorm2d(width), nn.ReLU(), nn.Flatten(),
                         nn.Linear(36 * width, num_classes))
"""


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_both_ways_of_loading_a_model_give_the_same_logits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_package").mkdir()
    (tmp_path / "my_package" / "my_module.py").write_text(NETWORK)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.chdir(tmp_path)
    model = {"name": "my_package.my_module:make_network", "options": {"width": 5}, "cut": ["4"]}
    run(tiny_config(rounds=1, model=model), "runs/spatl-1", pictures=False, progress=False)
    images = torch.rand(4, 1, 8, 8)
    ours, plain = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    names: dict[str, object] = {"images": images}
    exec(ours, names)
    assert torch.as_tensor(names["probabilities"]).sum(1).allclose(torch.ones(4))
    torch.save(images, tmp_path / "images.pt")
    script = (
        "import sys\nsys.modules['spatl'] = None\n" + plain
        + "import torch\ntorch.save(network(torch.load('../../images.pt')), '../../logits.pt')\n"
    )  # fmt: skip
    subprocess.run([sys.executable, "-c", f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n{script}"], check=True,
                   cwd=tmp_path / "runs" / "spatl-1")  # fmt: skip
    exec(ours.splitlines()[0] + "\nnetwork = read_run('runs/spatl-1').model()", names)
    with torch.no_grad():
        assert torch.equal(names["network"](images), torch.load(tmp_path / "logits.pt"))  # type: ignore[operator]
