"""Methods as rows of one table: a federated method is a handful of facts, not a trainer of its own (docs/methods.md).

One client round and one strategy read these facts; nothing else in the product asks for a method by name.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Final, Literal, get_args

from spatl.errors import ConfigError
from spatl.extensions.references import Door, is_reference, resolve, row_of

PredictorMode = Literal["local", "calibrated", "residual", "shared"]
"""What of the predictor is private (docs/methods.md, "The predictor")."""


@dataclass(frozen=True)
class PredictorRow:
    """One row of `PREDICTORS`: what of the predictor travels, and what a client adds to it.

    Attributes:
        shares: What the server averages where it is the config that says so: `"encoder"`, or `"all"`.
        offset: Whether a client adds an offset to the logits, computed from its own class frequencies.
        residual: Whether a client adds an output of its own to a shared predictor's.
    """

    shares: Literal["encoder", "all"]
    offset: bool = False
    residual: bool = False


PREDICTORS: Final[Mapping[PredictorMode, PredictorRow]] = {
    "local": PredictorRow("encoder"),
    "calibrated": PredictorRow("all", offset=True),
    "residual": PredictorRow("encoder", offset=True, residual=True),
    "shared": PredictorRow("all"),
}
_FIXED_MODES: Final[Mapping[str, PredictorMode]] = {"encoder": "local", "all": "shared", "nothing": "local"}


Shares = Literal["encoder", "all", "nothing", "chosen"]
"""What the server averages."""

METHOD_DOOR: Final = Door(
    "method", "method", "package.module:ROW", error=ConfigError,
    expected="a spatl.methods.Method, the row itself and not what makes it",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Method:
    """Row of the table: the facts that distinguish one federated method from another.

    Attributes:
        title: Its name as people write it.
        source: Where it is described.
        shares: What the server averages: `"encoder"` (the predictor stays private), `"all"`, `"nothing"`, or
            `"chosen"`: what the config's `predictor.mode` says, which the other rows do not read.
        selects: Whether clients send only the channels their selector picks; otherwise they send all of them.
        controls: Whether gradients are corrected by control variates (SCAFFOLD's option II).
        normalizes: Whether updates are divided by their step weight before averaging (FedNova).
        dynamic: Whether a client's loss has a linear term, the gradient that its last run ended with, and a pull to the
            server's weights, and the server goes on from the clients' mean by what these terms add up to (FedDyn).
        personal: Whether each client keeps a model of its own, pulled towards the server's, which is what it evaluates
            (Ditto).
        contrasts: Whether representations are drawn towards those of the server's model, and away from those of the
            client's own model of the round before (MOON).
        proximal: Whether `training.proximal_mu` pulls the shared weights towards the server's (FedProx).
        head_first: Whether the private predictor is trained first, under a fixed encoder, and then the encoder under
            the fixed predictor (FedRep).
        fine_tunes: Whether a client evaluates the server's model after training it a little on its own data.
        static_mask: Whether all clients train and send one set of channels, agreed on before the first round; the
            others are zero (SSFL).
        keep_ratio: The budget of those who choose channels, where a config sets none: a share of the encoder's entries.
        baseline: Whether it is a method that others published, for comparisons; the rows of SPATL are not.
        defaults: Settings that go with the method where a config does not say otherwise, by section.

    Raises:
        ConfigError: Facts exclude each other, or one is out of range.
    """

    title: str
    source: str
    shares: Shares
    selects: bool = False
    controls: bool = False
    normalizes: bool = False
    dynamic: bool = False
    personal: bool = False
    contrasts: bool = False
    proximal: bool = False
    head_first: bool = False
    fine_tunes: bool = False
    static_mask: bool = False
    keep_ratio: float = 0.4
    baseline: bool = True
    defaults: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.shares not in get_args(Shares):
            raise self._error(f"shares must be one of {', '.join(get_args(Shares))}, got {self.shares!r}")
        if not isinstance(self.keep_ratio, int | float) or not 0 < self.keep_ratio <= 1:
            raise self._error(f"keep_ratio must be in (0, 1], got {self.keep_ratio!r}")
        if self.selects and self.static_mask:
            raise self._error("selects and static_mask exclude each other: clients choose channels, or have one set")
        of_updates = self.selects or self.static_mask or self.corrects or self.normalizes
        if self.shares == "nothing" and (of_updates or self.personal or self.contrasts):
            raise self._error("what shares nothing has neither channels to select nor updates to correct or normalise")
        if self.dynamic and (self.controls or self.normalizes or self.proximal):
            raise self._error("dynamic has its own correction and pull: it excludes controls, normalizes and proximal")
        if self.personal and (self.fine_tunes or self.contrasts):
            raise self._error("personal excludes fine_tunes and contrasts: a client keeps one model of its own")
        if self.head_first and self.shares != "encoder":
            raise self._error(f"head_first needs a private predictor, shares='encoder', got {self.shares!r}")
        if not all(isinstance(values, Mapping) for values in self.defaults.values()):
            raise self._error(f"defaults must be settings by section, got {self.defaults!r:.80}")

    def _error(self, found: str) -> ConfigError:
        return ConfigError(f"the method {self.title!r}: {found}")

    def facts(self) -> dict[str, Any]:
        """Return what decides what is computed, by name; a config holds the defaults already."""
        return {key: value for key, value in asdict(self).items() if key not in ("title", "source", "defaults")}

    @property
    def corrects(self) -> bool:
        """Return whether each client keeps what corrects its gradients (c_i), and the server the weighted sum (c)."""
        return self.controls or self.dynamic

    @property
    def evaluates_own(self) -> bool:
        """Return whether each client evaluates weights of its own, which come of the server's."""
        return self.fine_tunes or self.personal

    @property
    def budgeted(self) -> bool:
        """Return whether some channels are not sent, as the budget says."""
        return self.selects or self.static_mask

    @property
    def predictor_mode(self) -> PredictorMode | None:
        """Private part of the predictor whatever a config says; None where the config chooses."""
        return _FIXED_MODES.get(self.shares)


def _spatl(
    title: str, shares: Literal["encoder", "all", "chosen"], *, selects: bool, controls: bool, paper: bool = False
) -> Method:
    return Method(
        title=title,
        source="Yu et al., SC'22, arXiv 2111.14345",
        shares=shares,
        selects=selects,
        controls=controls,
        baseline=False,
        keep_ratio=0.4 if paper else 0.8,
        defaults={} if paper else _COMPRESSED,
    )


# Undamped and unfading: what SCAFFOLD's own paper computes. It bears half of the learning rate that tuning found for
# the other rows (docs/benchmarks.md); at that one it diverged.
_OPTION_II: Mapping[str, Mapping[str, Any]] = {
    "control": {"damping": 1.0, "half_life": None},
    "training": {"learning_rate": 0.05},
}

# Of the rows of SPATL as this product has it; by measurement, on validation splits (docs/benchmarks.md). Momentum bears
# a tenth of the learning rate, as it sums up ten steps.
_COMPRESSED: Mapping[str, Mapping[str, Any]] = {
    "wire": {"uplink": "adaptive", "downlink": "adaptive"},
    "training": {"momentum": 0.9, "learning_rate": 0.02},
}


def _yardstick(title: str, source: str, uplink: str) -> Method:
    """Return FedAvg whose updates go up by a published codec; whole encoders come down, as none of these says how."""
    return Method(title=title, source=source, shares="all", defaults={"wire": {"uplink": uplink}})


def _of_parts(title: str, source: str, selector: str) -> Method:
    """Return FedAvg whose clients train the part of the network that their budget pays for."""
    part = {"selection": {"when": "before", "selector": selector}}
    return Method(title=title, source=source, shares="all", selects=True, defaults=part)


METHODS: dict[str, Method] = {
    "spatl": _spatl("SPATL", "chosen", selects=True, controls=True),
    "spatl-no-selection": _spatl("SPATL without selection", "chosen", selects=False, controls=True),
    "spatl-no-control": _spatl("SPATL without gradient control", "chosen", selects=True, controls=False),
    "spatl-no-transfer": _spatl("SPATL without transfer", "all", selects=True, controls=True),
    "spatl-paper": _spatl("SPATL with the paper's predictor", "encoder", selects=True, controls=True, paper=True),
    "fedavg": Method(title="FedAvg", source="McMahan et al., AISTATS 2017, arXiv 1602.05629", shares="all"),
    "fedavg-calibrated": Method(
        title="FedAvg with a calibrated predictor", source="logit adjustment, Menon et al. 2021, arXiv 2007.07314",
        shares="chosen",
    ),
    "fedavg-finetune": Method(
        title="FedAvg + fine-tuning", source="Yu et al. 2020, arXiv 2002.04758", shares="all", fine_tunes=True
    ),
    "fedprox": Method(title="FedProx", source="Li et al., MLSys 2020, arXiv 1812.06127", shares="all", proximal=True),
    "fedavgm": Method(
        title="FedAvgM", source="Hsu et al. 2019, arXiv 1909.06335", shares="all",
        defaults={"server_optimizer": {"name": "momentum"}},
    ),
    "fedadam": Method(
        title="FedAdam", source="Reddi et al., ICLR 2021, arXiv 2003.00295", shares="all",
        defaults={"server_optimizer": {"name": "adam"}, "server": {"learning_rate": 0.03}},
    ),
    "fedyogi": Method(
        title="FedYogi", source="Reddi et al., ICLR 2021, arXiv 2003.00295", shares="all",
        defaults={"server_optimizer": {"name": "yogi"}, "server": {"learning_rate": 0.03}},
    ),
    "fednova": Method(
        title="FedNova", source="Wang et al., NeurIPS 2020, arXiv 2007.07481", shares="all", normalizes=True
    ),
    "scaffold": Method(
        title="SCAFFOLD", source="Karimireddy et al., ICML 2020, arXiv 1910.06378", shares="all", controls=True,
        defaults=_OPTION_II,
    ),
    "feddyn": Method(title="FedDyn", source="Acar et al., ICLR 2021, arXiv 2111.04263", shares="all", dynamic=True),
    "ditto": Method(title="Ditto", source="Li et al., ICML 2021, arXiv 2012.04221", shares="all", personal=True),
    "moon": Method(title="MOON", source="Li, He, Song, CVPR 2021, arXiv 2103.16257", shares="all", contrasts=True),
    "fedper": Method(title="FedPer", source="Arivazhagan et al., 2019, arXiv 1912.00818", shares="encoder"),
    "fedrep": Method(
        title="FedRep", source="Collins et al., ICML 2021, arXiv 2102.07078", shares="encoder", head_first=True
    ),
    "ssfl": Method(
        title="SSFL, by channels", source="after Ohib et al. 2024, arXiv 2405.09037", shares="all",
        static_mask=True,
    ),
    "topk": _yardstick(
        "Top-k with error feedback", "Stich et al., NeurIPS 2018, arXiv 1809.07599; Lin et al. 2018, arXiv 1712.01887",
        "topk",
    ),
    "eden": _yardstick("EDEN, one bit", "Vargaftik et al., ICML 2022, arXiv 2108.08842", "eden"),
    "signsgd": _yardstick("EF-SignSGD", "Karimireddy et al., ICML 2019, arXiv 1901.09847", "signsgd"),
    "powersgd": _yardstick("PowerSGD", "Vogels et al., NeurIPS 2019, arXiv 1905.13727", "powersgd"),
    "fedpaq": _yardstick("FedPAQ", "Reisizadeh et al., AISTATS 2020, arXiv 1909.13014", "qsgd"),
    "fedavg-adaptive": Method(
        title="FedAvg with SPATL's codec", source="FedAvg with this product's codec", shares="all",
        defaults=_COMPRESSED,
    ),
    "fedavg-calibrated-adaptive": Method(
        title="FedAvg with SPATL's codec and predictor", source="FedAvg with this product's codec and predictor",
        shares="chosen", defaults=_COMPRESSED,
    ),
    "spatl-small": replace(
        _spatl("SPATL, training what it selects", "chosen", selects=True, controls=True),
        defaults={**_COMPRESSED, "selection": {"when": "before"}},
    ),
    "heterofl": _of_parts("HeteroFL", "Diao, Ding, Tarokh, ICLR 2021, arXiv 2010.01264", "ordered"),
    "fjord": _of_parts("FjORD, by rounds", "after Horvath et al., NeurIPS 2021, arXiv 2102.13451", "ordered-drawn"),
    "fedrolex": _of_parts("FedRolex", "Alam et al., NeurIPS 2022, arXiv 2212.01548", "rolling"),
    "federated-dropout": _of_parts("Federated Dropout", "Caldas et al. 2018, arXiv 1812.07210", "random"),
    "fedavg-able": Method(
        title="FedAvg of able devices", source="FedAvg without those whose budget does not pay for the whole network",
        shares="all", selects=True, keep_ratio=1.0, defaults={"selection": {"selector": "able"}},
    ),
    "local": Method(title="Training alone", source="the baseline without a federation", shares="nothing"),
}  # fmt: skip


def find_method(name: str) -> Method:
    """Return the facts of a method.

    Args:
        name: A key of `METHODS`, or `"package.module:ROW"` for one of the user's.

    Raises:
        ConfigError: There is none of this name, or the user's is not there, or none.
    """
    if not is_reference(name):
        return row_of(name, METHODS, METHOD_DOOR)
    row: Method = resolve(name, METHOD_DOOR, accepts=lambda found: isinstance(found, Method))
    return row
