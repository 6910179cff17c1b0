"""What `pip install` brings: a wheel from which `spatl run quickstart` works in any folder."""

import importlib.util
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("spatl", "clients", "server", "agents")


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """The content of the wheel, built from a copy, so that nothing is left in the checkout."""
    if importlib.util.find_spec("setuptools") is None:
        pytest.skip("building a wheel without a network needs setuptools here")
    directory = tmp_path_factory.mktemp("wheel")
    source = directory / "source"
    source.mkdir()
    for name in (*PACKAGES, "configs"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__", "*.so"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    build = [sys.executable, "-m", "pip", "wheel", ".", "--no-deps", "--no-build-isolation", "--no-index", "-q",
             "--disable-pip-version-check", "-w", str(directory)]  # fmt: skip
    subprocess.run(build, cwd=source, check=True)
    (wheel,) = directory.glob("spatl-*.whl")
    zipfile.ZipFile(wheel).extractall(directory / "site")
    return directory / "site"


def files_below(*roots):
    return {path.relative_to(root).as_posix() for root in roots for path in root.rglob("*") if path.is_file()}


def is_compiled(name):
    """Source of the extension, which no wheel needs, or what a compiler makes of it, if there is one."""
    return name.endswith((".c", ".so", ".pyd"))


@pytest.mark.slow
def test_a_wheel_holds_every_module_every_config_and_the_policy(installed):
    for name in PACKAGES:
        expected = {each for each in files_below(ROOT / name) if "__pycache__" not in each and not is_compiled(each)}
        found = {each for each in files_below(installed / name) if not each.startswith("configs/")}
        assert {each for each in found if not is_compiled(each)} == expected
    assert files_below(installed / "spatl" / "configs") == files_below(ROOT / "configs")
    assert {path.name for path in installed.iterdir() if "dist-info" not in path.name} == set(PACKAGES)


@pytest.mark.slow
def test_the_quickstart_runs_from_a_wheel_in_any_folder(installed, tmp_path):
    here = {**os.environ, "PYTHONPATH": str(installed), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-m", "spatl", "run", "quickstart", "--set", "rounds=1", "--set",
               "report.compare_alone=false", "--out", "made"]  # fmt: skip
    done = subprocess.run(command, cwd=tmp_path, env=here, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("SPATL: round 1/1  accuracy ")
    assert (tmp_path / "made" / "summary.json").stat().st_size > 0
    code = "import spatl.config.shipped as s; print(s.__file__, *s.shipped_configs().values())"
    listed = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=here, capture_output=True, text=True).stdout
    assert all(path.startswith(str(installed)) for path in listed.split())
