"""The ledger's sums are of directions: what a message sends the other way counts there."""

from spatl.runs.ledger import Direction, Entry, entry, total


def message(direction: Direction, num_bytes: int, opposite: int) -> Entry:
    return entry(
        server_round=1,
        client=0,
        direction=direction,
        phase="train",
        num_bytes=num_bytes,
        opposite=opposite,
        sections={"values": 60, "indices": 5},
    )


def test_what_goes_the_opposite_way_counts_as_other_in_that_direction():
    """Up 100 and 7 for the message that came down; down 200 and 3 for the one that went up."""
    entries = [message("uplink", 100, 3), message("downlink", 200, 7)]
    assert total(entries, "uplink") == {"values": 60, "indices": 5, "control": 0, "other": 35 + 7, "bytes": 107}
    assert total(entries, "downlink") == {"values": 60, "indices": 5, "control": 0, "other": 135 + 3, "bytes": 203}


def test_a_line_of_the_ledger_holds_a_messages_own_bytes_and_the_opposite_ones_beside_them():
    line = message("uplink", 100, 3).to_json()
    assert line["bytes"] == line["values"] + line["indices"] + line["control"] + line["other"] == 100
    assert line["opposite"] == 3
