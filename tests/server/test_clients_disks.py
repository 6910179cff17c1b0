"""Clients whose disk refuses to write: of devices the others go on. A simulation ends: `simulation/test_kills.py`."""

import resource
import sys
from contextlib import contextmanager

import pytest

from server.grids import InProcessGrid
from spatl.runs.files import HISTORY
from spatl.runs.records import read_lines
from tests.support.own_data import NUMBERS, own_config, serve_devices, write_data

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="limits of Linux")


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
