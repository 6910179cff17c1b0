"""Section of the server's optimizer: what it makes of the averaged update of a round."""

from typing import Annotated, Final, Literal

from pydantic import BeforeValidator, Field

from spatl.config.sections import Positive, Section, not_a_switch

ServerOptimizer = Literal["sgd", "momentum", "adam", "yogi"]
Beta = Annotated[float, BeforeValidator(not_a_switch), Field(ge=0, lt=1)]
ADAPTIVE: Final[frozenset[ServerOptimizer]] = frozenset({"adam", "yogi"})
"""The ones that keep a second moment."""


class ServerOptimizerConfig(Section):
    """Optimizer of the server, whose gradient is the averaged update, reversed; `server.learning_rate` is its rate."""

    name: ServerOptimizer = "sgd"
    """`sgd` adds the averaged update as it is; `momentum` adds up those of all rounds (FedAvgM), `adam` and `yogi`
    divide by the root of a second moment besides (Reddi et al. 2021)."""
    momentum: Beta = 0.9
    """Of `momentum`: the share of the last step that is in the next."""
    beta_1: Beta = 0.9
    """Of `adam` and `yogi`: decay of the first moment."""
    beta_2: Beta = 0.99
    """Likewise of the second."""
    tau: Positive = 1e-3
    """Likewise: what is added to the root of the second moment, so that small updates stay small."""
