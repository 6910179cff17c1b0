"""What goes with clients that train parts of the network, and what is refused in a line."""

from typing import Any

import pytest

from spatl.config.loading import parse_config
from spatl.config.unread import settings_without_effect
from spatl.errors import ConfigError
from spatl.rounds.sampling import able_clients, check_able

BEFORE: dict[str, Any] = {"when": "before"}


@pytest.mark.parametrize(
    ("sections", "line"),
    [
        ({"method": "fedavg"}, "selection.when: before: clients of FedAvg do not choose channels"),
        ({"method": "ssfl"}, "selection.when: before: all clients of SSFL, by channels train one set of channels"),
        (
            {"selection": {"selector": "update"}},
            "selection.when: before: selection.selector update goes by what moved in training, which is not known "
            "before; take one of agent, all, able, random, magnitude, signal, ordered",
        ),
        ({"selection": {"selector": "drawn"}}, "selection.selector drawn goes by what moved"),
        (
            {"method": "spatl-no-control", "privacy": {"noise_multiplier": 1.0}},
            "what noise covers of parts that differ was not worked out",
        ),
        ({"server": {"aggregation": "median"}}, "server.aggregation median does not count who sent an entry"),
        (
            {"server_optimizer": {"name": "momentum"}, "control": {"downlink": "sent"}},
            "server_optimizer.name momentum moves entries that nobody trained",
        ),
        ({"selection": {"when": "meanwhile"}}, "selection.when"),
    ],
)
def test_what_does_not_go_with_parts_is_refused_in_a_line(sections: dict[str, Any], line: str) -> None:
    with pytest.raises(ConfigError) as told:
        parse_config({**sections, "selection": {**BEFORE, **sections.get("selection", {})}})
    assert line in str(told.value)
    assert "\n" not in str(told.value).strip()


def test_clients_train_parts_where_they_choose_them() -> None:
    assert parse_config({"selection": BEFORE}).trains_parts
    assert not parse_config({}).trains_parts
    assert not parse_config({"selection": {**BEFORE, "selector": "all"}}).trains_parts


def test_only_clients_whose_budget_pays_for_everything_are_able() -> None:
    clients = {0: {"flops_ratio": 0.5}, 1: {"keep_ratio": 1.0}, 2: {"uplink_bytes": 10**9}}
    config = parse_config({"selection": {"selector": "able", "flops_ratio": 1.0, "clients": clients}})
    assert able_clients(config, range(4)) == [1, 3]
    assert settings_without_effect(config) == {}
    assert able_clients(parse_config({"selection": {"clients": clients}}), range(4)) == [0, 1, 2, 3]
    with pytest.raises(ConfigError, match="able leaves out every client, as no budget is a ratio of 1"):
        check_able(parse_config({"selection": {"selector": "able", "keep_ratio": 0.5}}))


@pytest.mark.parametrize(
    ("sections", "line"),
    [
        ({"selection": {**BEFORE, "selector": "all"}}, "selection.when has no effect: selection.selector all chooses"),
        (
            {"selection": BEFORE, "agent": {"reward": "sent"}},
            "agent.reward has no effect: before training nothing is sent yet",
        ),
    ],
)
def test_what_is_not_read_is_told(sections: dict[str, Any], line: str) -> None:
    assert any(each.startswith(line) for each in settings_without_effect(parse_config(sections)).values())
