"""The federated methods as rows of one table: a method is a handful of facts, not a trainer of its own (DESIGN 2.5).

One client round and one strategy read these facts; nothing else in the product asks for a method by name.
"""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class Method:
    """What distinguishes one federated method from another.

    Attributes:
        title: Its name as people write it.
        source: Where it is described.
        shares: What the server averages: `"encoder"` (the predictor stays private), `"all"`, or `"nothing"`.
        selects: Whether clients send only the channels their selector picks; otherwise they send all of them.
        controls: Whether gradients are corrected by control variates (SCAFFOLD's option II).
        normalizes: Whether updates are divided by their step weight before averaging (FedNova).
        proximal: Whether `training.proximal_mu` pulls the shared weights towards the server's (FedProx).
    """

    title: str
    source: str
    shares: Literal["encoder", "all", "nothing"]
    selects: bool = False
    controls: bool = False
    normalizes: bool = False
    proximal: bool = False


_SPATL = "Yu et al., SC'22, arXiv 2111.14345"

METHODS: dict[str, Method] = {
    "spatl": Method(title="SPATL", source=_SPATL, shares="encoder", selects=True, controls=True),
    "spatl-no-selection": Method(title="SPATL without selection", source=_SPATL, shares="encoder", controls=True),
    "spatl-no-control": Method(title="SPATL without gradient control", source=_SPATL, shares="encoder", selects=True),
    "spatl-no-transfer": Method(
        title="SPATL without transfer (one shared predictor)", source=_SPATL, shares="all", selects=True, controls=True
    ),
    "fedavg": Method(title="FedAvg", source="McMahan et al., AISTATS 2017, arXiv 1602.05629", shares="all"),
    "fedprox": Method(title="FedProx", source="Li et al., MLSys 2020, arXiv 1812.06127", shares="all", proximal=True),
    "fednova": Method(
        title="FedNova", source="Wang et al., NeurIPS 2020, arXiv 2007.07481", shares="all", normalizes=True
    ),
    "scaffold": Method(
        title="SCAFFOLD", source="Karimireddy et al., ICML 2020, arXiv 1910.06378", shares="all", controls=True
    ),
    "fedper": Method(title="FedPer", source="Arivazhagan et al., 2019, arXiv 1912.00818", shares="encoder"),
    "local": Method(title="Training alone", source="the baseline without a federation", shares="nothing"),
}
