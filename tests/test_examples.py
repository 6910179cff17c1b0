"""What `docs/examples/` holds runs, and computes what its page says."""

import hashlib
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from spatl import run

EXAMPLES = Path(__file__).parents[1] / "docs" / "examples"


@pytest.fixture(scope="module")
def by_hand():
    """The names of `one_round_by_hand.py`."""
    return runpy.run_path(str(EXAMPLES / "one_round_by_hand.py"))


@pytest.fixture(scope="module")
def done(by_hand):
    """Its round."""
    return by_hand["one_round"]()


def test_one_round_by_hand_moves_x_and_c_as_the_equations_say(by_hand, done):
    encoder, control = by_hand["by_hand"](done)
    assert float((done.after.encoder - done.before.encoder).abs().max()) > 1e-3
    torch.testing.assert_close(done.after.encoder, encoder, rtol=0, atol=1e-7)
    assert float(done.after.control.abs().max()) > 1e-3
    torch.testing.assert_close(done.after.control, control, rtol=0, atol=1e-7)


def test_one_round_by_hand_moves_what_somebody_sent_and_nothing_else(done):
    layout = done.blueprint.layout
    sent = torch.zeros(layout.num_entries, dtype=torch.bool)
    for update in done.updates.values():
        sent[update.selection.entries(layout)] = True
        assert update.selection.keep_ratio(layout) <= done.blueprint.config.selection.keep_ratio
    assert 0 < int(sent.sum()) < layout.num_entries
    assert torch.equal(done.after.encoder[~sent], done.before.encoder[~sent])
    assert bool((done.after.encoder[sent] != done.before.encoder[sent]).any())


@pytest.mark.slow
def test_one_round_by_hand_is_what_a_run_of_the_same_config_does_to_the_bit(by_hand, done, tmp_path):
    result = run(by_hand["CONFIG"], tmp_path, pictures=False)
    (row,) = result.history
    assert row["encoder_fingerprint"] == hashlib.blake2b(done.after.encoder.numpy(), digest_size=16).hexdigest()
    assert row["rejected"] == 0


@pytest.mark.slow
def test_one_round_by_hand_prints_what_it_does_without_flower_in_under_100_lines():
    path = EXAMPLES / "one_round_by_hand.py"
    code = (
        f"import runpy, sys; runpy.run_path({str(path)!r}, run_name='__main__'); "
        "assert not [name for name in sys.modules if name.split('.')[0] == 'flwr']"
    )
    told = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.splitlines()
    assert [line.split()[0] for line in told] == ["The", "Client", "Client", "The", "x", "x", "c"]
    assert float(told[-1].rstrip(".").split()[-1]) < 1e-7
    assert len(path.read_text().splitlines()) < 100
