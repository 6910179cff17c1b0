"""Methods that are rows here compute what others compute: Flower's strategies, examples worked out by hand, papers."""

import copy

import pytest
import torch
import torch.nn.functional as F
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp.strategy import FedAdam, FedAvg, FedAvgM, FedProx, FedYogi

from clients.app import app as client_app
from server.grids import InProcessGrid
from server.replies import blob_content
from spatl.channels.selection import Selection, select_all
from spatl.config.training import TrainingConfig
from spatl.data import Examples, batches
from spatl.errors import BudgetError, DivergedError, SpatlError
from spatl.rounds.aggregation import Aggregator
from spatl.rounds.control import refresh_control
from spatl.rounds.following import Held, follow
from spatl.rounds.workplace import Workplace
from spatl.runs.records import read_lines
from spatl.seeding import generator
from spatl.training.device import reproducible
from spatl.training.hooks import correction_hook
from spatl.training.local import train_
from spatl.wire.download import unpack_download
from spatl.wire.update import Update
from tests.support.clients import received, train
from tests.support.federations import (
    blob_of,
    blueprint_of,
    fingerprints,
    opened,
    registered,
    run_tiny,
    state_of,
    tampering,
    tiny_config,
)
from tests.support.layouts import interleaved_layout


def flowers_result(config, strategy):
    """Flower's own strategy and plain PyTorch clients, on the data, initial weights and batches of a config."""
    blueprint = blueprint_of(config)
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        client = context.node_config["partition-id"]
        server_round = message.content["config"]["server-round"]
        mu = message.content["config"].get("proximal-mu", 0.0)
        model = copy.deepcopy(blueprint.model)
        model.load_state_dict(message.content["arrays"].to_torch_state_dict())
        start = [p.detach().clone() for p in model.parameters()]
        examples = blueprint.client_data(client).train
        optimizer = torch.optim.SGD(model.parameters(), lr=config.training.learning_rate)
        order = generator(config.seed, "batches", server_round=server_round, client=client)
        for _ in range(config.training.local_epochs):
            for images, labels in batches(examples, batch_size=config.training.batch_size, generator=order):
                optimizer.zero_grad()
                pull = sum(((p - s) ** 2).sum() for p, s in zip(model.parameters(), start, strict=True))
                (F.cross_entropy(model(images), labels) + mu / 2 * pull).backward()
                optimizer.step()
        metrics = MetricRecord({"num-examples": len(examples)})
        arrays = ArrayRecord(model.state_dict())
        return Message(RecordDict({"arrays": arrays, "metrics": metrics}), reply_to=message)

    grid = InProcessGrid(app, num_clients=config.partition.num_clients, run_config={})
    with reproducible(threads=1):
        result = strategy.start(
            grid, ArrayRecord(blueprint.model.state_dict()), num_rounds=config.rounds, train_config=ConfigRecord()
        )
    return result.arrays.to_torch_state_dict()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "strategy"),
    [
        ("fedavg", FedAvg(fraction_evaluate=0.0)),
        ("fedprox", FedProx(fraction_evaluate=0.0, proximal_mu=0.5)),
        ("fedavgm", FedAvgM(fraction_evaluate=0.0, server_momentum=0.9)),
        ("fedadam", FedAdam(fraction_evaluate=0.0, eta=0.03, beta_1=0.9, beta_2=0.99, tau=1e-3)),
        ("fedyogi", FedYogi(fraction_evaluate=0.0, eta=0.03, beta_1=0.9, beta_2=0.99, tau=1e-3)),
    ],
)
def test_the_row_computes_what_flowers_own_strategy_computes(tmp_path, strategies, method, strategy):
    config = tiny_config(
        method=method, training={"local_steps": None, "local_epochs": 2, "learning_rate": 0.1, "proximal_mu": 0.5}
    )
    run_tiny(config, tmp_path)
    ours = blueprint_of(config).layout.unflatten(strategies[-1].state.encoder)
    theirs = flowers_result(config, strategy)
    assert ours.keys() == theirs.keys()
    # Where updates are small, dividing by the root of a second moment makes rounding larger.
    tolerance = 1e-5 if method in ("fedadam", "fedyogi") else 2e-6
    for name, values in theirs.items():
        torch.testing.assert_close(ours[name], values.float(), rtol=0, atol=tolerance)


@pytest.mark.slow
def test_the_pull_of_fedprox_matters_in_that_comparison(tmp_path, strategies):
    """The two rows of the comparison above are far further apart than its tolerance."""
    results = []
    for method in ("fedavg", "fedprox"):
        run_tiny(tiny_config(method=method, training={"proximal_mu": 0.5, "local_steps": 8}), tmp_path / method)
        results.append(strategies[-1].state.encoder)
    assert float((results[0] - results[1]).abs().max()) > 1e-3


@pytest.mark.slow
def test_a_calibrated_fedavg_without_its_offset_is_fedavg_to_the_bit(tmp_path, strategies):
    results = {}
    for name, settings in {
        "fedavg": {"method": "fedavg"},
        "no offset": {"method": "fedavg-calibrated", "predictor": {"strength": 0.0}},
        "calibrated": {"method": "fedavg-calibrated"},
    }.items():
        summary = run_tiny(tiny_config(**settings), tmp_path / name)
        results[name] = strategies[-1].state.encoder
        assert summary["keep_ratio"] == 1.0
        assert strategies[-1].state.control is None
    assert torch.equal(results["fedavg"], results["no offset"])
    assert not torch.equal(results["fedavg"], results["calibrated"])


SCALAR = interleaved_layout([(1, 1)])
SOME_EXAMPLES = Examples(torch.zeros(2, 1, 1, 1), torch.zeros(2, dtype=torch.int64))


class Scalar(torch.nn.Module):
    """One weight, whose gradient the tests replace by that of a quadratic."""

    def __init__(self, start: float) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.tensor([start]))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.flatten(1) * self.weight + torch.zeros(len(images), 2)


def local_run(start: float, minimum: float, steps: int, correction: float = 0.0) -> Update:
    """The update of a client whose loss is (w - minimum)^2 / 2, after plain steps at learning rate 1/2."""
    model = Scalar(start)

    def quadratic(parameters):
        weight = parameters["layer0.p0"]
        weight.grad = (weight - minimum).detach().clone()

    settings = TrainingConfig(local_epochs=1, local_steps=steps, batch_size=2, learning_rate=0.5)
    hooks = [quadratic, correction_hook({"layer0.p0": torch.tensor([correction])}, {"layer0.p0": torch.zeros(1)})]
    result = train_(
        model, {"layer0.p0": model.weight}, SOME_EXAMPLES, settings, generator=torch.Generator(), hooks=hooks
    )
    return Update(1, 0, select_all(SCALAR), (model.weight - start).detach(), result.step_weight, corrected=True)


def test_scaffold_on_two_clients_by_hand():
    """Minima 1 and -3, equal weights, two steps at 1/2 (a = 1), option II undamped.

    Round 1, x = c = c_i = 0: client 1 goes 0.5, 0.75, so c_1 = -0.75; client 2 goes -1.5, -2.25, so c_2 = 2.25;
    x = (0.75 - 2.25) / 2 = -0.75, c = (-0.75 + 2.25) / 2 = 0.75.
    Round 2: client 1 is corrected by 0.75 + 0.75 = 1.5: gradients -0.25 and -0.125, y = -0.5625, D = 0.1875,
    c_1 = -0.75 - 0.75 - 0.1875 = -1.6875; client 2 by 0.75 - 2.25 = -1.5: gradients 0.75 and 0.375, y = -1.3125,
    D = -0.5625, c_2 = 2.25 - 0.75 + 0.5625 = 2.0625; x = -0.75 + (0.1875 - 0.5625) / 2 = -0.9375, towards the common
    minimum -1, where FedAvg would stay at -0.75 of it; c = (-1.6875 + 2.0625) / 2 = 0.1875.
    """
    x, c, own = torch.zeros(1), torch.zeros(1), [torch.zeros(1), torch.zeros(1)]
    expected = [(-0.75, 0.75, -0.75, 2.25), (-0.9375, 0.1875, -1.6875, 2.0625)]
    for numbers in expected:
        aggregator = Aggregator(SCALAR, x, c, total_examples=2)
        for client, minimum in enumerate((1.0, -3.0)):
            update = local_run(float(x), minimum, steps=2, correction=float(c - own[client]))
            aggregator.add(update, 1)
            own[client] = refresh_control(own[client], c, update, SCALAR, damping=1.0)
        x, c = aggregator.encoder(), aggregator.control()
        assert (float(x), float(c), float(own[0]), float(own[1])) == pytest.approx(numbers)


def test_fednova_on_two_clients_by_hand():
    """Minima 1 and -3, weights 1/4 and 3/4, one and two steps at 1/2.

    Client 1: D = 0.5, a = 0.5, direction 1; client 2: D = -2.25, a = 1, direction -2.25. The mean direction is
    1/4 - 3 * 2.25 / 4 = -1.4375, the effective step weight 0.5/4 + 3/4 = 0.875: x = -1.2578125. FedAvg would go to
    0.5/4 - 3 * 2.25 / 4 = -1.5625, pulled by the client that took more steps.
    """
    updates = [(local_run(0.0, 1.0, steps=1), 1), (local_run(0.0, -3.0, steps=2), 3)]
    for normalizes, expected in ((True, -1.2578125), (False, -1.5625)):
        aggregator = Aggregator(SCALAR, torch.zeros(1), None, total_examples=4, normalizes=normalizes)
        for update, number in updates:
            aggregator.add(update, number)
        assert float(aggregator.encoder()) == pytest.approx(expected)


@pytest.mark.parametrize("method", ["scaffold", "spatl"])
def test_scaffold_is_option_ii_unless_a_config_says_otherwise(method):
    control = tiny_config(method=method).control
    assert (control.damping, control.half_life) == ((1.0, None) if method == "scaffold" else (0.5, 2.0))
    control = tiny_config(method=method, control={"damping": 0.7}).control
    assert (control.damping, control.half_life) == (0.7, None if method == "scaffold" else 2.0)


@pytest.mark.slow
def test_the_head_of_fedrep_never_leaves_its_client(tmp_path):
    """No blob in either direction holds a row of any client's head, and no layout names it."""
    config = tiny_config(method="fedrep")
    blobs = []

    class Watching(InProcessGrid):
        def push_messages(self, messages):
            messages = list(messages)
            blobs.extend(blob_of(m.content) for m in messages if m.metadata.message_type != "query")
            return super().push_messages(messages)

    def keep(client, content):
        blobs.append(blob_of(content))
        return content

    run_tiny(config, tmp_path, app=tampering(keep), grid_type=Watching)
    assert not any("classifier" in name for name in blueprint_of(config).layout.shapes)
    heads = [state_of(tmp_path, client).private["classifier.weight"] for client in range(5)]
    assert not torch.equal(heads[0], heads[1])
    assert len(blobs) == 3 * 2 * 5 + 5  # rounds, directions, clients, and the final encoder
    for blob in blobs:
        assert not any(row.numpy().tobytes() in blob for head in heads for row in head)


@pytest.mark.slow
def test_fedrep_trains_the_head_under_the_encoder_that_arrived_and_then_the_encoder_under_that_head():
    """Collins et al., algorithm 1: recomputed with two plain runs of SGD over one half of the parameters each."""
    config = tiny_config(method="fedrep", training={"head_epochs": 3})
    blueprint = blueprint_of(config)
    blob, state = train(Workplace(blueprint), 0, received(blueprint), None, acknowledged_round=0)

    model, data = copy.deepcopy(blueprint.model), blueprint.client_data(0)
    head = {name: p for name, p in model.named_parameters() if name.startswith("classifier")}
    body = {name: p for name, p in model.named_parameters() if name not in head}
    settings = config.training
    for parameters, purpose, epochs in (
        (head, "head", 3),
        (body, "batches", None),
    ):
        draw = generator(config.seed, purpose, server_round=1, client=0)
        train_(model, parameters, data.train, settings, generator=draw, epochs=epochs)
    update = opened(blob, blueprint.layout)
    moved = blueprint.layout.flatten(dict(model.named_parameters())) - blueprint.initial_encoder()
    torch.testing.assert_close(update.values, moved, rtol=0, atol=1e-6)
    torch.testing.assert_close(state.private["classifier.weight"], model.classifier.weight.detach(), rtol=0, atol=1e-6)


@pytest.mark.slow
def test_fine_tuning_shows_in_the_accuracies_and_nowhere_else(tmp_path):
    """The encoders are those of FedAvg, round for round; losses on arrival are lower after training a little."""
    run_tiny(tiny_config(method="fedavg"), tmp_path / "plain")
    run_tiny(tiny_config(method="fedavg-finetune", training={"finetune_epochs": 3}), tmp_path / "tuned")
    assert fingerprints(tmp_path / "plain") == fingerprints(tmp_path / "tuned")
    plain, tuned = (read_lines(tmp_path / name / "history.jsonl") for name in ("plain", "tuned"))
    assert all(after["loss"] < before["loss"] for before, after in zip(plain, tuned, strict=True))
    assert tuned[-1]["final_loss"] < plain[-1]["final_loss"]


@pytest.mark.slow
def test_with_a_static_mask_all_train_and_send_one_set_of_channels_and_the_rest_is_zero(tmp_path, strategies):
    config = tiny_config(method="ssfl", selection={"keep_ratio": 0.3}, training={"weight_decay": 0.01, "momentum": 0.5})
    layout, codec = blueprint_of(config).layout, blueprint_of(config).codecs.downlink
    models, selections = [], []

    class Watching(InProcessGrid):
        def push_messages(self, messages):
            messages = list(messages)
            for message in messages:
                if message.metadata.message_type != "query":
                    blob = blob_of(message.content)
                    assert len(blob) < 0.3 * 4 * layout.num_entries + 200  # down as well as up
                    download = unpack_download(blob, layout, codec)
                    selections.append(download.selection)
                    models.append(follow(download, Held({}), torch.zeros(layout.num_entries), layout)[0])
            return super().push_messages(messages)

    def keep(client, content):
        selections.append(opened(blob_of(content), layout).selection)
        return content

    summary = run_tiny(config, tmp_path, app=tampering(keep), grid_type=Watching)
    assert len(selections) == 3 * 5 + 3 * 5 + 5  # up, down, and the final encoder
    assert all(selection.closed for selection in selections)
    (mask,) = {tuple(selection.mask.tolist()) for selection in selections}
    assert 0 < sum(mask) < layout.num_channels
    entries = Selection(torch.tensor(mask), closed=True).entries(layout)
    assert len(entries) <= 0.3 * layout.num_entries
    gone = torch.ones(layout.num_entries, dtype=torch.bool).index_fill_(0, entries, False)
    for encoder in (*models, strategies[-1].state.encoder):
        assert not encoder[gone].any()
    assert int((strategies[-1].state.encoder[entries] != models[0][entries]).sum()) > 0.9 * len(entries)
    assert summary["keep_ratio"] == len(entries) / layout.num_entries
    assert summary["rejected"] == 0
    assert read_lines(tmp_path / "history.jsonl")[0]["uplink"]["indices"] >= 5 * 4 * layout.num_channels


@pytest.mark.slow
def test_a_static_mask_keeps_the_classes(tmp_path, strategies):
    """The channels that no layer reads are the logits: without one of them a class could never be predicted."""
    config = tiny_config(method="ssfl", selection={"keep_ratio": 0.25}, rounds=1)
    run_tiny(config, tmp_path)
    views = blueprint_of(config).layout.unflatten(strategies[-1].state.encoder)
    assert bool((views["classifier.weight"] != 0).any(1).all())


def test_a_budget_that_does_not_pay_for_the_classes_is_one_clear_line(tmp_path):
    """One channel of each group costs 26 + 26 + 5 + 11 of 1,562 entries; the ten classes read one hidden unit each."""
    config = tiny_config(
        method="ssfl", model={"name": "cnn", "options": {"channels": [1, 1], "hidden": 100}},
        selection={"keep_ratio": 0.04}, rounds=1,
    )  # fmt: skip
    with pytest.raises(BudgetError, match=r"selection\.keep_ratio is 0\.04, but the 13 channels .* cost 0\.0493"):
        run_tiny(config, tmp_path)


@pytest.mark.slow
def test_an_update_of_other_channels_than_were_agreed_on_is_refused(tmp_path):
    config = tiny_config(method="ssfl", selection={"keep_ratio": 0.3}, rounds=1)
    whole = tiny_config(method="fedavg")
    forged, _ = train(Workplace(blueprint_of(whole)), 2, received(blueprint_of(whole)), None, acknowledged_round=0)

    def forge(client, content):
        return blob_content(forged) if client == 2 else content

    run_tiny(config, tmp_path, app=tampering(forge))
    (rejection,) = read_lines(tmp_path / "history.jsonl")[0]["rejections"]
    assert rejection == {"client": 2, "reason": "the update is not of the channels that all clients agreed on"}


@pytest.mark.parametrize(
    ("blob", "reason"),
    [(b"", "bytes of channel saliency, got 0"), (None, "channel saliency must be finite numbers from 0")],
)
def test_a_client_that_cannot_say_what_matters_is_one_clear_line(tmp_path, blob, reason):
    config = tiny_config(method="ssfl", rounds=1)
    nan = b"\x00\x00\xc0\x7f" * blueprint_of(config).layout.num_channels
    app = ClientApp()

    @app.query()
    def register(message: Message, context: Context) -> Message:
        content = client_app(message, context).content
        if context.node_config["partition-id"] == 3:
            content = registered(content, saliency=nan if blob is None else blob)
        return Message(content, reply_to=message)

    with pytest.raises(SpatlError, match=f"client 3 could not register: .*{reason}"):
        run_tiny(config, tmp_path, app=app)


@pytest.mark.slow
def test_when_every_client_diverges_the_run_is_said_to_have_diverged(tmp_path):
    with pytest.raises(DivergedError, match=r"no update could be used.*diverged in round 1"):
        run_tiny(tiny_config(method="fedavg", training={"learning_rate": 1e30}), tmp_path)


@pytest.mark.slow
def test_a_compressed_fedavg_is_a_row_with_a_codec(tmp_path):
    """Half the bytes of values both ways, but for a count of one byte in each download; losses hardly differ."""
    runs = {}
    for codec in ("float32", "float16"):
        config = tiny_config(method="fedavg", wire={"uplink": codec, "downlink": codec}, rounds=4)
        runs[codec] = run_tiny(config, tmp_path / codec), read_lines(tmp_path / codec / "history.jsonl")
    full, half = (
        sum(row[way]["values"] for row in rows for way in ("uplink", "downlink")) for _, rows in runs.values()
    )
    counts = 4 * 5 + 5  # rounds, clients, and the final encoder
    assert full - counts == 2 * (half - counts)
    assert runs["float16"][0]["loss"] == pytest.approx(runs["float32"][0]["loss"], rel=0.01)


@pytest.mark.slow
def test_what_was_sent_is_a_share_of_whole_updates_in_float32(tmp_path):
    """Whatever the codec: what a whole update costs is measured, as a run that sends such updates pays it."""
    runs = {}
    for codec in ("float32", "int4-entropy"):
        config = tiny_config(method="fedavg", wire={"uplink": codec, "downlink": "int8"}, rounds=2)
        runs[codec] = run_tiny(config, tmp_path / codec)
    full, coded = runs.values()
    assert full["uplink_share"] == pytest.approx(1.0, abs=1e-3)
    assert coded["uplink_share"] == pytest.approx(coded["update_bytes"] / full["update_bytes"], rel=1e-3)
    assert coded["uplink_share"] < 0.4
