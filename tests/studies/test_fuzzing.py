"""A bounded run of the fuzzer over each decoder; `tests/studies/fuzzing.py` runs longer ones."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TARGETS = ("update", "download", "findings", "measures", "report", "values", "matrices", "integers")


@pytest.fixture(scope="module")
def fuzzed(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """What the fuzzer said of each target's status, and the directory with what each target said.

    The options bound each run by inputs and seconds, whatever ends first.
    """
    corpus = tmp_path_factory.mktemp("fuzzed")
    command = [
        sys.executable, "-m", "tests.studies.fuzzing", ",".join(TARGETS), str(corpus),
        "-runs=10000", "-max_total_time=20", "-seed=1", f"-artifact_prefix={corpus}/",
    ]  # fmt: skip
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=500, check=False)
    return done.stdout + done.stderr, corpus


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("atheris") is None, reason="atheris is not installed")
@pytest.mark.parametrize("target", TARGETS)
def test_mutated_bytes_are_decoded_or_refused(target: str, fuzzed: tuple[str, Path]) -> None:
    statuses, corpus = fuzzed
    told = (corpus / f"{target}.log").read_text()
    assert f"{target}: status 0," in statuses, told[-6000:]
    assert "Done" in told
