"""Sections of an experiment's configuration, each a frozen model with its defaults and its own rules.

Every default of the product stands here or in another module of this room, and nowhere else.
"""

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal, Self, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainSerializer, field_validator, model_validator

from spatl.data import DATASET_DOOR, DATASETS, PARTITIONER_DOOR, PARTITIONERS
from spatl.data.bounds import LARGEST_NUM_TOKENS, as_told, check_classes, check_scale, check_shape, names_of
from spatl.data.labels import MAX_CLASSES
from spatl.data.normalisation import Scale, num_scaled
from spatl.errors import ConfigError, DataError, did_you_mean
from spatl.extensions.references import Door, is_reference
from spatl.methods import PredictorMode
from spatl.models.table import MODEL_DOOR, MODELS
from spatl.wire.codecs import CODEC_DOOR, CODECS

if TYPE_CHECKING:
    from spatl.data.own import Agreement

AGGREGATIONS: Final = (
    "mean", "agreement", "median", "trimmed-mean", "multi-krum", "nnm", "centered-clipping", "geometric-median",
)  # fmt: skip
"""The rules of aggregation, which are made above this room (`spatl.rounds.rules`)."""
TRIMMING: Final = ("trimmed-mean", "multi-krum", "nnm")
"""Those that leave a share out (`server.trim_fraction`)."""
AGGREGATION_DOOR: Final = Door(
    noun="aggregation rule",
    setting="server.aggregation",
    form="package.module:rule",
    expected="a function of a round's updates, or a class derived from spatl.rounds.aggregation.Aggregator",
    error=ConfigError,
)


Values = TypeVar("Values", bound=tuple[Any, ...])

_LARGEST: Final = 10**15  # which floating point holds exactly, and products of two of which it does not lose


def not_a_switch(value: object) -> object:
    """Return a value, unless it is true or false, which pydantic would take for 1 or 0, or a number beyond all uses.

    Raises:
        ValueError: It is.
    """
    if isinstance(value, bool):
        raise ValueError(f"must be a number, got {str(value).lower()}")
    if isinstance(value, int) and abs(value) > _LARGEST:
        raise ValueError(f"must be at most {_LARGEST}, got a number of {len(str(abs(value)))} digits")
    return value


def some_and_distinct(values: Values) -> Values:
    """Return values, of which there is at least one, and none twice.

    Raises:
        ValueError: It is otherwise.
    """
    if not values:
        raise ValueError("is empty; give at least one value")
    if len(set(values)) < len(values):
        raise ValueError(f"holds a value twice: {list(values)}")
    return values


Fraction = Annotated[float, BeforeValidator(not_a_switch), Field(gt=0, lt=1)]

Ratio = Annotated[float, BeforeValidator(not_a_switch), Field(gt=0, le=1)]

Positive = Annotated[float, BeforeValidator(not_a_switch), Field(gt=0)]

Count = Annotated[int, BeforeValidator(not_a_switch), Field(ge=1)]


Momentum = Annotated[float, BeforeValidator(not_a_switch), Field(ge=0, lt=1)]


class Section(BaseModel):
    """Base of all sections: unknown keys are errors, and nothing changes after construction."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class AgreedConfig(Section):
    """Agreement of devices with data of their own (`partition.name: own`)."""

    classes: Annotated[tuple[str, ...], BeforeValidator(names_of), PlainSerializer(as_told)]
    """The names of all classes, in the order of the model's outputs; of many tokens that have none their number."""
    shape: tuple[int, ...]
    """The sides of an example: of an image channels, height and width."""
    means: tuple[float, ...]
    """What is taken from the values of each channel or feature."""
    deviations: tuple[Positive, ...]
    """What they are then divided by."""
    scale: Scale = "channel"
    """Which of the two."""
    num_tokens: Annotated[int, Field(ge=0)] = 0
    """Of tokens, how many there are; 0 for other numbers."""
    target_means: tuple[float, ...] = ()
    """Of a regression, what is taken from the targets of each output."""
    target_deviations: tuple[Positive, ...] = ()
    """What they are then divided by."""

    @model_validator(mode="after")
    def _possible(self) -> Self:
        try:
            check_classes(self.classes, most=MAX_CLASSES)
            check_shape(self.shape)
            check_scale(self.scale, self.num_tokens)
        except DataError as error:
            raise ValueError(str(error)) from None
        entries = num_scaled(self.shape, self.scale)
        aims = len(self.target_means)
        if aims and not len(self.classes) == aims == len(self.target_deviations):
            raise ValueError(
                f"expected target_means and target_deviations of {len(self.classes)} outputs, got {aims} and "
                f"{len(self.target_deviations)}"
            )
        if (len(self.classes) < 2 and not aims) or not len(self.means) == len(self.deviations) == entries:
            raise ValueError(
                f"expected two classes or more, and means and deviations of {entries} channels, got "
                f"{len(self.classes)}, {len(self.means)} and {len(self.deviations)}"
            )
        return self

    def agreement(self) -> "Agreement":
        """Return this section as `spatl.data` takes it."""
        from spatl.data.own import Agreement  # with which PyTorch comes, that a config is read without

        return Agreement(**dict(self))


class DataConfig(Section):
    """Data set, and the division of each client's examples into splits."""

    name: str = "digits"
    """A row of `spatl show datasets`, or `package.module:load`."""
    options: dict[str, Any] = Field(default_factory=dict)
    """What that data set takes, e.g. `difficulty` of `synthetic`, `path` or `hub` of `cifar10`."""
    normalisation: Literal["none", "channel", "feature", "dataset"] | None = None
    """Over what inputs are brought to mean 0 and variance 1 on the clients' training examples: each `channel`
    `[:, c]`, each `feature` (place in an example, as columns of a table are), or `none` of them. `dataset` scales
    images over all examples of the data set, test examples too, as early versions did. Null takes what suits the
    data."""
    num_tokens: Annotated[Count, Field(le=LARGEST_NUM_TOKENS)] | None = None
    """How many tokens there are, of inputs or next tokens that are whole numbers; null for the largest and one. Data
    that have others are refused."""
    validation_fraction: Fraction = 0.15
    """Share of a client's examples that selectors may look at."""
    test_fraction: Fraction = 0.25
    """Share of a client's examples that only evaluation sees."""
    official_test: Literal["dealt", "apart"] = "dealt"
    """Test examples that the data set was published with: `dealt` to the clients, each class as its training examples
    are; or `apart`, for the server's model alone, while clients test on a share of their own."""
    agreed: AgreedConfig | None = None
    """What devices with data of their own go by; the server of a deployment fills it in when they have registered."""

    @field_validator("name")
    @classmethod
    def _known(cls, name: str) -> str:
        return one_of(name, DATASETS, door=DATASET_DOOR)


class PartitionConfig(Section):
    """Partition of the examples among the clients."""

    name: str = "dirichlet"
    """A row of `spatl show partitioners`, or `package.module:split`. `spatl deploy init` takes `own` where a config
    names none."""
    num_clients: Count = 20
    """Number of clients in the federation."""
    alpha: Positive = 0.5
    """Dirichlet concentration: the smaller, the more the clients differ."""
    labels_per_client: Count = 2
    """How many classes a client sees; only `labels` reads it."""
    min_examples: Count = 10
    """No client holds fewer."""
    path: str | None = None
    """The .csv or .json file from which `file` reads whose each example is."""
    feature_noise: Annotated[float, BeforeValidator(not_a_switch), Field(ge=0)] = 0.0
    """sigma of NIID-Bench: the images of client i of N (from 1) get Gaussian noise of variance sigma * i / N."""

    @field_validator("name")
    @classmethod
    def _known(cls, name: str) -> str:
        return one_of(name, PARTITIONERS, door=PARTITIONER_DOOR)

    @model_validator(mode="after")
    def _file_is_named(self) -> Self:
        if self.name == "file" and not self.path:
            raise ValueError("name: file needs path, the .csv or .json file that says whose each example is")
        return self


class ModelConfig(Section):
    """Network, and its cut into encoder and predictor."""

    name: str = "cnn"
    """A row of `spatl show models`, or `package.module:factory`."""
    cut: tuple[str, ...] | None = None
    """Submodules that form the private predictor; needed for a factory of your own."""
    options: dict[str, Any] = Field(default_factory=dict)
    """Keyword arguments for the factory."""
    weights: str | None = None
    """Safetensors file of weights to start from, by the network's own names, such as a run's `model/model.safetensors`;
    null draws all of them from the seed."""
    weights_sha256: Annotated[str, Field(pattern="[0-9a-f]{64}")] | None = None
    """What the SHA-256 of that file must be; a run fills it in."""

    @field_validator("name")
    @classmethod
    def _known(cls, name: str) -> str:
        return one_of(name, MODELS, door=MODEL_DOOR)

    @model_validator(mode="after")
    def _checksum_of_something(self) -> Self:
        if self.weights_sha256 is not None and self.weights is None:
            raise ValueError("weights_sha256 is of a file that weights names: give both, or neither")
        return self

    def located(self, directory: Path) -> Self:
        """Return the section with an absolute path of the weights to start from, and their checksum.

        Raises:
            SpatlError: There is no such file.
        """
        if self.weights is None:
            return self
        from spatl.models.weights import sha256_of  # with which PyTorch comes, that other configs are read without

        path = directory / Path(self.weights).expanduser()
        known = {"weights": str(path), "weights_sha256": self.weights_sha256 or sha256_of(path)}
        return self.model_copy(update=known)

    def without_weights(self) -> Self:
        """Return the section with all weights drawn from the seed."""
        return self.model_copy(update={"weights": None, "weights_sha256": None})


class PredictorConfig(Section):
    """Private part of the predictor, for methods that leave it open (`spatl show methods`: shares)."""

    mode: PredictorMode = "calibrated"
    """`calibrated` shares all parameters and keeps an offset on the logits private, the client's log class
    frequencies; `residual` does so too, and adds to the shared predictor a private one, pulled towards zero; `local`
    keeps the submodules of the cut private (the paper's); `shared` keeps nothing."""
    strength: Annotated[float, BeforeValidator(not_a_switch), Field(ge=0)] = 1.0
    """Factor of that offset; 0 for none."""
    smoothing: Positive = 1.0
    """Examples added to every class before its frequency is taken."""
    shrinkage: Annotated[float, BeforeValidator(not_a_switch), Field(ge=0)] = 0.1
    """The pull on the parameters of a `residual`'s private part: that times each is added to its gradient."""


class ControlConfig(Section):
    """Control variates, for methods that correct gradients."""

    damping: Ratio = 0.5
    """rho: how far c and c_i move to new estimates; 1 is SCAFFOLD's option II, which can diverge under selection."""
    half_life: Positive | None = 2.0
    """Rounds after which what was not refreshed counts half; null never forgets."""
    downlink: Literal["auto", "derived", "sent"] = "auto"
    """How clients come to know c: `derived` from the encoder's changes, for free, by clients that miss few rounds
    (`catch_up`; the others train uncorrected for a while); `sent`, with the downlink's codec; `auto` derives it where
    that codec sends changes."""
    catch_up: Annotated[int, BeforeValidator(not_a_switch), Field(ge=0, le=254)] | None = None
    """Rounds that a client may have missed and still derive c: it is sent their changes one by one, more bytes than
    their sum. null: 8 where each client is asked in every round, else 0."""


class ServerConfig(Section):
    """Server's part of a round: sampling, aggregation, refusals and waiting."""

    learning_rate: Positive = 1.0
    """eta_g, the step along the averaged update."""
    fraction_train: Ratio = 1.0
    """Share of the clients that train in a round."""
    min_replies: Count = 1
    """A round with fewer usable replies changes nothing."""
    norm_bound: Positive | None = 10.0
    """An update is refused if it is more than so many times larger than usual, both in its root mean square and in that
    per accumulated step weight, so that neither many examples nor few make a client's update large. Usual is the lower
    quartile of the clients' last updates, the largest that it ever was, growing by half a round at the most (in the
    first round, that round's own), and at least a tenth of the encoder's own root mean square. Null for no bound."""
    aggregation: str = "mean"
    """How the clients' updates become one, for each entry over those that sent it. Weighted by their numbers of
    examples: their mean; `agreement`, the same without the clients whose updates have pointed against the others' over
    the rounds, which wants `clip` beside it where rounds are small; and by the distances of updates from each other
    `multi-krum`, `nnm`, `centered-clipping` and `geometric-median`. By rank, each alike: `median`, `trimmed-mean`. All
    but the mean are for federations with a few bad clients (docs/robustness.md has what each costs) and keep every
    update in memory until the round is over. `spatl show aggregation-rules` lists them; `package.module:rule` is one of
    your own."""
    trim_fraction: Annotated[float, BeforeValidator(not_a_switch), Field(ge=0, lt=0.5)] = 0.2
    """The share of the senders that a trimmed mean leaves out at either end, rounded up; for `multi-krum` and `nnm`,
    the share of a round's clients that may be bad."""
    clip: Positive | None = None
    """An update that is more than so many times larger than usual, measured as for `norm_bound`, is scaled down to it;
    here the median of the clients' last updates is usual, the largest of the last five rounds, and at least a hundredth
    of the encoder's root mean square. It moves no control variate then. Null for none."""
    max_weight: Ratio = 0.2
    """The largest share that a client can have in all averages where the server has nothing but its word for how many
    examples it has (`partition.name: own`), or twice an equal share where that is more. 1 for no bound."""
    max_failures: Count = 3
    """A client whose updates are refused so many times in a row is left out for a while."""
    rounds_away: Count = 10
    """For so many rounds; then it has one attempt at a time."""
    stop_after: Count | None = None
    """The run ends, with its final evaluation, once so many rounds have brought no better accuracy on the clients'
    validation splits than a round before them; it needs `report.best`, which keeps that round's model. Null for never.
    """
    connect_timeout_seconds: Positive = 60.0
    """How long the server waits for all clients to connect; in a simulation before a round, too, for enough of them."""
    give_up_seconds: Positive | None = None
    """How long a deployment's server waits for enough clients to connect before it stops. Null for ever."""
    round_timeout_seconds: Positive = 3600.0
    """How long the server waits for the replies of a round."""
    patience: Positive | None = None
    """For fleets: once half of a round's replies are in, the others are waited for at most so many times as long as
    these took. Null for the timeout alone; with it, what a run gives depends on who is fast: under `local_epochs` a
    client with many times the examples of the others is late in every round, under `local_steps` it is not."""
    ask_again_after: Annotated[float, BeforeValidator(not_a_switch), Field(ge=0)] = 1.5
    """For deployments: a question that has no answer after so many times what the client usually takes, is put again,
    up to three times with growing waits; 0 for never. Which of its answers arrive changes nothing."""

    @field_validator("aggregation")
    @classmethod
    def _known(cls, rule: str) -> str:
        return one_of(rule, AGGREGATIONS, door=AGGREGATION_DOOR)


class PrivacyConfig(Section):
    """Central differential privacy of each client, whole, towards all but the server (docs/privacy.md)."""

    noise_multiplier: Positive | None = None
    """The standard deviation of the noise on the sum of a round's updates, in units of `clip`; null for no privacy."""
    clip: Positive = 1.0
    """The L2 norm that an update is scaled down to if it is longer."""
    delta: Annotated[float, BeforeValidator(not_a_switch), Field(gt=0, lt=1)] = 1e-5
    """The delta that epsilon is told for; it should be well below one over the number of clients."""


class WireConfig(Section):
    """Codecs of values, per direction."""

    target_ratio: Annotated[float, BeforeValidator(not_a_switch), Field(ge=1e-3)] | None = None
    """How many times fewer bytes a message may take than the encoder in float32. One knob for both directions: it makes
    `adaptive` as coarse as that asks. A client that missed rounds gets what it missed beside that."""
    uplink: str = "float32"
    """A row of `spatl show codecs`, or `package.module:Codec`."""
    downlink: str = "float32"
    """A row of `spatl show codecs`, or `package.module:Codec`."""
    rounding: Literal["dither", "at-random"] | None = None
    """How `adaptive` rounds updates: under dither that the server takes off, or at random, which takes 1.8 times the
    bytes. Null: dither for classifications by encoders of 10,000 entries and more, else at random."""
    downlink_steps: Literal["coarse", "fine"] | None = None
    """How `adaptive` rounds the server's change: to steps from two to four root mean squares, or from 1.4 to 2.8. Null:
    coarse where `rounding` is dither, or null for what it dithers, else fine."""

    @field_validator("uplink", "downlink")
    @classmethod
    def _known(cls, codec: str) -> str:
        return one_of(codec, CODECS, door=CODEC_DOOR)

    @model_validator(mode="before")
    @classmethod
    def _one_knob(cls, values: Any) -> Any:
        """Take a ratio alone for the codec that can meet it."""
        if isinstance(values, Mapping) and values.get("target_ratio") is not None:
            return {"uplink": "adaptive", "downlink": "adaptive", **values}
        return values

    @model_validator(mode="after")
    def _adaptive(self) -> Self:
        fixed = [f"{way} is {codec}" for way, codec in (("uplink", self.uplink), ("downlink", self.downlink))
                 if codec != "adaptive"]  # fmt: skip
        if self.target_ratio is not None and fixed:
            raise ValueError(f"target_ratio needs codecs that can meet it, but {' and '.join(fixed)}; leave them out")
        return self


def one_of(name: str, table: Collection[str], *, door: Door | None = None) -> str:
    """Return a name that a table has, or that is a reference to something of the user's, which is looked up later.

    Args:
        name: What the config says.
        table: What there is.
        door: What a reference would lead to; None where there can be none.

    Raises:
        ValueError: It is neither; the message lists the known names, and how a reference is written.
    """
    if name in table or (door is not None and is_reference(name)):
        return name
    known = ", ".join(table) + (f', or "{door.form}" for your own' if door is not None else "")
    raise ValueError(f"unknown name {name!r}{did_you_mean(name, table)}; known: {known}")
