"""Clients whose disk refuses to write: a simulation ends in one line, of devices the others go on."""

import re
import resource
import shutil
import sys
import threading
from contextlib import contextmanager
from pathlib import Path

import pytest

from server.grids import InProcessGrid
from spatl.console.main import main
from spatl.runner import run
from spatl.runs.files import HISTORY
from spatl.runs.records import read_lines
from tests.support.federations import history_without_seconds, tiny_config
from tests.support.own_data import NUMBERS, own_config, serve_devices, write_data
from tests.support.processes import until

READ_ONLY = Path("/sys")
"""A directory in which nobody makes a file, not even root."""
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="limits and directories of Linux")


@contextmanager
def full_disk():
    """Have no file of this process grow beyond some bytes, as on a disk that is full."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


class FullDisk(InProcessGrid):
    """Grid on which client 1's disk is full while it trains in round 2."""

    def pull_messages(self, message_ids):
        asked = [self.queue[each].metadata for each in message_ids if each in self.queue]
        if [(each.dst_node_id, each.message_type, each.group_id) for each in asked] != [(3, "train", "2")]:
            return super().pull_messages(message_ids)
        with full_disk():
            return super().pull_messages(message_ids)


@pytest.mark.slow
def test_a_device_whose_disk_is_full_is_left_out_of_one_round_and_says_so_on_both_sides(tmp_path, caplog):
    for client, number in enumerate(NUMBERS):
        write_data(tmp_path / f"{client}.npz", number, range(4), seed=client)
    serve_devices(own_config(rounds=4, method="spatl"), tmp_path, grid_type=FullDisk)
    rounds = read_lines(tmp_path / "run" / HISTORY)
    assert [row["participants"] for row in rounds] == [3, 2, 3, 3]
    ((refusal,),) = [row["rejections"] for row in rounds if row["rejections"]]
    assert refusal["client"] == 1
    assert "the file may not grow any further" in refusal["reason"]
    assert str(tmp_path) not in refusal["reason"]  # a device's paths are its own affair
    own = [record.getMessage() for record in caplog.records if "this device could not do" in record.getMessage()]
    assert len(own) == 1
    assert str(tmp_path / "device-1") in own[0]
    assert "Traceback" not in caplog.text


def make_read_only(own: Path) -> None:
    own.rename(own.with_name("kept"))
    own.symlink_to(READ_ONLY)


@pytest.mark.slow
def test_on_ray_a_client_that_may_not_write_ends_the_run_in_one_line_and_it_goes_on_as_undisturbed(tmp_path, capsys):
    config = tiny_config(rounds=3, partition={"num_clients": 2}, training={"local_steps": 300}, method="spatl")
    run(config, tmp_path / "whole", pictures=False)
    path, out = tmp_path / "config.yaml", tmp_path / "out"
    path.write_text(config.model_copy(update={"engine": "ray"}).to_yaml())
    own = out / "clients"

    def disturb():
        until(lambda: (out / HISTORY).exists() and read_lines(out / HISTORY), seconds=240.0)
        make_read_only(own)

    thread = threading.Thread(target=disturb)
    thread.start()
    assert main(["run", str(path), "--out", str(out)]) == 2
    thread.join()
    error = capsys.readouterr().err
    assert "Traceback" not in error
    (line,) = [each for each in error.splitlines() if each.startswith("spatl: ")]
    assert re.search(rf"{own}/\d: no permission: change the .*; then go on with the run in {out} \(--resume\)", line)
    own.unlink()
    shutil.move(own.with_name("kept"), own)
    assert main(["run", "--resume", str(out)]) == 0
    assert history_without_seconds(out) == history_without_seconds(tmp_path / "whole")
