"""A bounded run of the fuzzer over each decoder; `tests/studies/fuzzing.py` runs longer ones."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("atheris") is None, reason="atheris is not installed")
@pytest.mark.parametrize(
    "target", ["update", "download", "findings", "measures", "report", "values", "matrices", "integers"]
)
def test_mutated_bytes_are_decoded_or_refused(target, tmp_path):
    """The options bound the run by inputs and seconds, whatever ends first, and keep each input short."""
    longest = 6000 if target == "measures" else 600  # counts of scores are many
    command = [
        sys.executable, "-m", "tests.studies.fuzzing", target, str(tmp_path / "corpus"),
        "-runs=10000", "-max_total_time=20", f"-max_len={longest}", "-seed=1",
        f"-artifact_prefix={tmp_path}/",
    ]  # fmt: skip
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    assert "Done" in done.stderr
