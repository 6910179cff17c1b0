"""What a client holds when its answers are lost, through the real apps."""

import json

import pytest

from spatl.reference import Reference
from tests.federations import run_tiny, tiny_config


@pytest.mark.slow
def test_a_client_that_was_led_from_the_initial_encoder_in_vain_is_led_from_it_again(tmp_path, monkeypatch):
    """Version 3 is reached from version 0, as if that were shorter, and the answers to it are lost.

    The clients keep no version 2 then, which the server had known them to hold.
    """
    shortest = Reference._shortest
    monkeypatch.setattr(Reference, "_shortest", lambda self, held: shortest(self, 0 if self.version == 3 else held))
    config = tiny_config(rounds=5, method="fedavg", wire={"uplink": "adaptive", "downlink": "adaptive"})

    def loses(client: int, message) -> bool:
        return client > 0 and message.metadata.message_type == "train" and message.metadata.group_id == "4"

    run_tiny(config, tmp_path, loses=loses)
    rounds = [json.loads(line) for line in (tmp_path / "history.jsonl").read_text().splitlines()]
    assert [each["missing"] for each in rounds] == [0, 0, 0, 4, 0]
    assert [each["rejections"] for each in rounds] == [[]] * 5
