"""Names of the clients' owners, wherever a client is shown."""

import json
from pathlib import Path

import numpy as np
import pytest

from spatl import run
from spatl.config.device import DeviceConfig
from spatl.config.permission import permitted
from spatl.console.main import main
from spatl.errors import NotAllowed
from spatl.extensions.listed import ListedFiles
from spatl.runs.records import read_lines
from tests.support.federations import tiny_config

OWNERS = ("Aarau [ward]", "Bern", "Chur", "Davos", "Ems", "Fribourg")


@pytest.fixture(scope="module")
def six_owners(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images of six owners, and the same as a file of a partition."""
    directory: Path = tmp_path_factory.mktemp("owned")
    groups = np.array([OWNERS[number % 6] for number in range(240)])
    images = np.random.default_rng(1).integers(0, 256, (240, 8, 8), dtype=np.uint8)
    np.savez(directory / "owned.npz", images=images, labels=np.arange(240) % 4, groups=groups)
    (directory / "owners.json").write_text(json.dumps(groups.tolist()))
    return directory


@pytest.mark.slow
@pytest.mark.parametrize("name", ["natural", "file"])
def test_owners_are_named_wherever_a_client_is_shown(
    six_owners: Path, name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    partition = {
        "name": name,
        "num_clients": 6,
        **({"path": str(six_owners / "owners.json")} if name == "file" else {}),
    }
    config = tiny_config(
        rounds=1, data={"name": "npz", "options": {"path": str(six_owners / "owned.npz")}}, partition=partition,
        report={"findings": "end", "prototype_examples": None},
    )  # fmt: skip
    run(config, tmp_path / "run", progress=False)
    rows = read_lines(tmp_path / "run" / "clients.jsonl")
    assert {(row["client"], row["owner"]) for row in rows} == set(enumerate(OWNERS))
    assert all(owner in (tmp_path / "run" / "report.html").read_text() for owner in OWNERS)
    (tmp_path / "config.yaml").write_text(config.to_yaml())
    for command in (
        ["status", str(tmp_path / "run")],
        ["diagnose", str(tmp_path / "run")],
        ["partition", str(tmp_path / "config.yaml"), "--out", str(tmp_path / "picture.png")],
    ):
        assert main(command) == 0
        printed = capsys.readouterr().out
        assert all(owner in printed for owner in OWNERS), command[0]
    assert main(["diagnose", "--json", str(tmp_path / "run")]) == 0
    assert json.loads(capsys.readouterr().out)["owners"] == {str(client): owner for client, owner in enumerate(OWNERS)}


@pytest.mark.slow
def test_nobody_is_named_where_owners_have_no_part_in_the_partition(six_owners: Path, tmp_path: Path) -> None:
    config = tiny_config(rounds=1, data={"name": "npz", "options": {"path": str(six_owners / "owned.npz")}})
    run(config, tmp_path / "run", pictures=False)
    assert {row["owner"] for row in read_lines(tmp_path / "run" / "clients.jsonl")} == {None}


def test_a_device_opens_no_file_of_a_partition(six_owners: Path, tmp_path: Path) -> None:
    config = tiny_config(partition={"name": "file", "path": str(six_owners / "owners.json")})
    with pytest.raises(NotAllowed, match=r"data\.dir \(partition\.path\)"):
        permitted(config, DeviceConfig(), ListedFiles(tmp_path, ()), tmp_path, client=0, has_data=True)


def test_a_deployment_is_not_made_of_a_file(
    six_owners: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tiny_config(partition={"name": "file", "path": str(six_owners / "owners.json")})
    (tmp_path / "config.yaml").write_text(config.to_yaml())
    made = tmp_path / "made"
    assert main(["deploy", "init", str(made), str(tmp_path / "config.yaml")]) == 2
    assert "partition.name: file is for simulations" in capsys.readouterr().err
    assert not made.exists()
