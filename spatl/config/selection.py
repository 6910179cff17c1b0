"""Sections on what a client may spend, and how it chooses what to send."""

from typing import Annotated, Literal, Self

from pydantic import BeforeValidator, Field, field_validator, model_validator

from spatl.channels.budgets import BUDGET_KINDS, Budget
from spatl.config.sections import Count, Ratio, Section, not_a_switch, one_of
from spatl.selection.table import SELECTOR_DOOR, SELECTORS


class BudgetConfig(Section):
    """Budget of a client in a round; at most one of the three is set."""

    keep_ratio: Ratio | None = None
    """Share of the encoder's entries. Where no budget is given it is the method's: 0.8 for SPATL's, 0.4 for others."""
    flops_ratio: Ratio | None = None
    """Share of the encoder's multiply-accumulates."""
    uplink_bytes: Count | None = None
    """Bytes of the packed update."""

    @model_validator(mode="after")
    def _one_budget(self) -> Self:
        given = [kind for kind in BUDGET_KINDS if getattr(self, kind) is not None]
        if len(given) > 1:
            raise ValueError(f"set one of {', '.join(BUDGET_KINDS)}, got {' and '.join(given)}")
        return self

    def own_budget(self) -> Budget | None:
        """Return the budget that is set here, if any."""
        given = [(kind, getattr(self, kind)) for kind in BUDGET_KINDS if getattr(self, kind) is not None]
        return Budget(given[0][0], float(given[0][1])) if given else None


class SelectionConfig(BudgetConfig):
    """Selection of the channels that travel, and the budget it has to meet."""

    selector: str = "agent"
    """A row of `spatl show selectors`, or `package.module:selector`."""
    when: Literal["after", "before"] = "after"
    """When a client chooses: `after` local training, which channels of its update travel; or `before`, which part of
    the network it trains at all. Then a budget is of that part, cut out as a smaller network (docs/small-devices.md),
    and selectors that go by what moved cannot choose."""
    clients: dict[Annotated[int, Field(ge=0)], BudgetConfig] = Field(default_factory=dict)
    """Budgets of single clients, by partition id, where they differ. A deployed client sets its own: in its node's
    config, as keep-ratio, flops-ratio or uplink-bytes."""

    @field_validator("selector")
    @classmethod
    def _known(cls, selector: str) -> str:
        return one_of(selector, SELECTORS, door=SELECTOR_DOOR)

    @field_validator("clients")
    @classmethod
    def _one_each(cls, clients: dict[int, BudgetConfig]) -> dict[int, BudgetConfig]:
        for client, budget in clients.items():
            if budget.own_budget() is None:
                raise ValueError(f"client {client}: set one of {', '.join(BUDGET_KINDS)}")
        return clients

    def budget(self, client: int | None = None) -> Budget | None:
        """Return the budget of a client, or of those that have none of their own; None where none is set."""
        own = self.clients[client].own_budget() if client in self.clients else None
        return own or self.own_budget()


class AgentConfig(Section):
    """Agent's way to choose (`selector: agent`)."""

    reward: Literal["sent", "pruned"] = "sent"
    """What it maximises on the validation split: the accuracy of the server's encoder with what this client sends, or
    that of the client's encoder pruned to what is selected (the paper's)."""
    samples: Annotated[int, BeforeValidator(not_a_switch), Field(ge=0)] = 4
    """Selections it measures per round beside its own and the prior; fewer where `max_share` says so."""
    tuning: Literal["search", "ppo"] = "search"
    """How samples are drawn: a local search around the policy's action, or PPO on the policy's head (the paper's)."""
    tuning_rounds: Count | None = None
    """Rounds of the federation in which samples are drawn; null for all (the paper: 10)."""
    max_share: Ratio = 0.2
    """What measuring may cost, as a share of the local training's time, which is estimated (`agents.effort`)."""
    policy: str | None = None
    """A file written by `spatl agent pretrain`, relative to where the client runs; null for the policy that ships."""
