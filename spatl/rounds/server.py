"""A round of the server: open it, admit what comes, close it (SPATL, section IV; SCAFFOLD, algorithm 1).

State goes in and comes out: each step takes a `ServerState` and returns another one, with what to send or what came of
it. Which messages carry the blobs, and when they come, is somebody else's affair; so is what is written down.
"""

import logging
import secrets
from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from spatl.errors import UpdateRejected
from spatl.rounds.admission import Size
from spatl.rounds.aggregation import Aggregator, AverageSettings, PrivateAggregator, channel_energies, channels_moved
from spatl.rounds.answers import (
    Answer,
    Candidate,
    Outcome,
    admit,
    agreeing_candidates,
    checked_candidates,
    question_of,
    refuse_,
    statistics_bounds,
    usual_sizes,
)
from spatl.rounds.cosines import Sketches
from spatl.rounds.downlink import Reference
from spatl.rounds.dynamic import DynamicAggregator
from spatl.rounds.federation import Federation
from spatl.rounds.opened_control import (
    derived_control,
    encoded_control,
    knows_control,
    missed_steps,
    with_control_opened,
    without_lost_control,
)
from spatl.rounds.progress import checked_progress
from spatl.rounds.rules import aggregation_rule, sums_as_given
from spatl.rounds.server_optimizer import Moments, moved
from spatl.rounds.server_state import ServerState
from spatl.rounds.weights import bounded_weights
from spatl.seeding import generator
from spatl.wire.download import download_overhead, pack_download

__all__ = [
    "admit",
    "advanced",
    "close_round",
    "first_state",
    "open_round",
    "pack_downloads",
    "question_of",
]

logger = logging.getLogger(__name__)


def first_state(
    federation: Federation,
    num_examples: Mapping[int, int],
    *,
    cannot_build: Collection[int] = (),
    sampling_seed: int | None = None,
) -> ServerState:
    """Return the state before the first round.

    Args:
        federation: What holds for all rounds.
        num_examples: Training examples of each client (n_i).
        cannot_build: The clients whose initial encoder is another one than the server's, so that it is sent to them.
        sampling_seed: As of the state.
    """
    blueprint = federation.blueprint
    row = blueprint.config.row
    control = torch.zeros(blueprint.layout.num_parameter_entries) if row.corrects else None
    reference = Reference(
        blueprint.initial_encoder(), blueprint.layout, blueprint.codecs.downlink, selection=federation.agreed
    )
    return ServerState(
        encoder=reference.encoder,
        control=control,
        held_control=control if row.controls else None,
        control_share=0.0,
        versions=reference.versions,
        folded={},
        held=dict.fromkeys(num_examples, 0),
        control_staleness=dict.fromkeys(num_examples, 0.0),
        num_examples=num_examples,
        weights=bounded_weights(num_examples, federation.max_weight),
        cannot_build=frozenset(cannot_build),
        moments=Moments.start(blueprint.config.server_optimizer, blueprint.layout),
        sampling_seed=sampling_seed,
    )


def open_round(
    federation: Federation, state: ServerState, server_round: int, clients: Iterable[int]
) -> tuple[ServerState, dict[int, bytes]]:
    """Lead what the clients hold towards the server's, and pack a download for each client of the round.

    Args:
        federation: What holds for all rounds.
        state: The server's, between two rounds.
        server_round: The round, from 1.
        clients: Who is asked.

    Returns:
        The state in the round, and one blob by client.

    Raises:
        DivergedError: The encoder has left all bounds.
    """
    reference = federation.reference(state)
    state = replace(state, statistics=None)  # those of an evaluation before are of another encoder
    if server_round > 1:
        state = without_lost_control(state, server_round)
        reference, change = advanced(federation, state, reference, server_round)
        state = replace(with_control_opened(federation, state, change, server_round), versions=reference.versions)
    sent_control = None
    if state.held_control is not None and state.control is not None and not federation.derives_control:
        sent_control, held_control = encoded_control(
            federation, state.control, server_round, max_bytes=_room(federation)
        )
        state = replace(state, held_control=held_control)
    return pack_downloads(federation, state, reference, server_round, clients, control=sent_control)


def close_round(
    federation: Federation, state: ServerState, server_round: int, answers: Iterable[Answer]
) -> tuple[ServerState, Outcome]:
    """Check every answer, fold the good ones in as they come, and move x and c.

    x_j += eta_g * sum p_i D_ij / sum p_i over the clients that sent entry j, and
    c_j += rho * sum_i p_i (-D_ij / a_i - c_j).

    Args:
        federation: What holds for all rounds.
        state: The server's, in the round.
        server_round: The round.
        answers: Each client that answered, once, in any order.

    Returns:
        The state after the round, and what came of it; where that says that the run cannot go on, the state is the one
        before.
    """
    outcome = Outcome()
    aggregator = _aggregator(federation, state)
    usual, answers = usual_sizes(federation, state, server_round, answers)
    bounds, answers = statistics_bounds(federation, state, server_round, answers)
    candidates = checked_candidates(federation, state, server_round, answers, usual, outcome, bounds)
    admission = state.admission
    if aggregation_rule(federation.blueprint.config.server.aggregation).compares:
        candidates, admission = agreeing_candidates(federation, admission, list(candidates), server_round, outcome)
    sketches = _sketches(federation, aggregator, server_round)
    sizes, unclipped = _fold_(federation, aggregator, sketches, candidates, state.shares, server_round, outcome)
    if sketches is not None:
        outcome.cosines = sketches.cosines(channel_energies(aggregator))
    encoder, moments = _moved(federation, state, aggregator)
    closed, outcome.ending = checked_progress(federation, state, server_round, outcome, encoder)
    if outcome.ending is not None:
        return state, outcome
    closed = _remembered(federation, replace(closed, admission=admission), server_round, outcome, sizes)
    server = federation.blueprint.config.server
    if aggregator.num_updates < server.min_replies:
        outcome.skipped = True
        logger.warning(
            "round %d: %d usable replies, fewer than server.min_replies = %d; the round changes nothing",
            server_round, aggregator.num_updates, server.min_replies, extra={"round": server_round},
        )  # fmt: skip
        return closed, outcome
    # One that was clipped is not acknowledged where c does not contain it, so that c_i does not either.
    contained = sizes if state.control is None else unclipped
    folded = {**closed.folded, **dict.fromkeys(sorted(contained), server_round)}
    return replace(
        closed, encoder=encoder, moments=moments, control=aggregator.control(),
        control_share=aggregator.control_share(), folded=folded,
    ), outcome  # fmt: skip


def _moved(federation: Federation, state: ServerState, aggregator: Aggregator) -> tuple[Tensor, Moments | None]:
    """The encoder after the round, float32 [N], and the memory of what moved it."""
    encoder = aggregator.encoder()
    if state.moments is None:
        return encoder, None
    config = federation.blueprint.config
    return moved(
        state.encoder, encoder, channels_moved(aggregator), state.moments, config.server_optimizer,
        learning_rate=config.server.learning_rate, layout=federation.blueprint.layout,
    )  # fmt: skip


def _remembered(
    federation: Federation,
    state: ServerState,
    server_round: int,
    outcome: Outcome,
    sizes: Mapping[int, Size],
) -> ServerState:
    """The state with what a round's answers tell of the clients, whether or not it changes the model."""
    server = federation.blueprint.config.server
    held = {**state.held, **dict.fromkeys(sizes, state.versions.version)}
    # One that arrives elsewhere has its c_i all the same; without control variates it is told that it is as if new.
    anew = outcome.lost if state.control is None else outcome.forgot
    # A client that lost its way starts from the initial encoder; one that did so in vain cannot build that.
    in_vain = {client for client in outcome.lost - outcome.forgot if held[client] == 0}
    return replace(
        state,
        held={**held, **dict.fromkeys(outcome.lost, 0)},
        cannot_build=state.cannot_build | in_vain,
        control_share=0.0,
        folded={client: last for client, last in state.folded.items() if client not in anew},
        forgotten=state.forgotten | (outcome.forgot & state.folded.keys()),
        admission=state.admission.after(
            server_round, folded=sizes, refused=outcome.rejected.keys() - outcome.not_now,
            max_failures=server.max_failures, rounds_away=server.rounds_away,
        ),
    )  # fmt: skip


def _fold_(
    federation: Federation,
    aggregator: Aggregator,
    sketches: Sketches | None,
    candidates: Iterable[Candidate],
    num_examples: Mapping[int, int],
    server_round: int,
    outcome: Outcome,
) -> tuple[dict[int, Size], set[int]]:
    """Fold the candidates in as they come; return their sizes by client, and the clients that were not clipped."""
    sizes, unclipped, layout = dict[int, Size](), set[int](), federation.blueprint.layout
    for candidate in candidates:
        client = candidate.client
        try:
            aggregator.add(candidate.update, num_examples[client])
        except UpdateRejected as error:
            refuse_(outcome, client, error, server_round)
        else:
            if sketches is not None:
                sketches.add(client, candidate.update, num_examples[client])
            outcome.trained[client], sizes[client] = candidate.report, candidate.size
            outcome.measures[client] = candidate.update.measures
            if candidate.update.arrival is not None:
                outcome.arrivals[client] = candidate.update.arrival
            if federation.notes_choices and layout.groups:
                outcome.kept[client] = tuple(candidate.update.selection.counts(layout).tolist())
            if not candidate.clipped:
                unclipped.add(client)
        del candidate  # as large as the encoder, and another client may train before the next one is here
    return sizes, unclipped


def _sketches(federation: Federation, aggregator: Aggregator, server_round: int) -> Sketches | None:
    """Return what the cosines of the round's updates come from; None where the sum is of something else than these."""
    config = federation.blueprint.config
    if not sums_as_given(aggregator):
        return None
    return Sketches(
        federation.blueprint.layout, seed=config.seed, server_round=server_round, normalizes=config.row.normalizes
    )


def advanced(
    federation: Federation, state: ServerState, reference: Reference, server_round: int
) -> tuple[Reference, Tensor]:
    """Return x_hat one version on, and what the change was of the parameters, float32 [P]."""
    return reference.advance(
        state.encoder,
        generator=generator(federation.blueprint.config.seed, "rounding-server", server_round=server_round),
        max_bytes=_room(federation),
    )


def _room(federation: Federation) -> int | None:
    """Return how long the change in a download may be, and c where it is sent beside it; None for any length."""
    limit, controls = federation.blueprint.message_bytes, federation.blueprint.config.row.controls
    if limit is None:
        return None
    room = limit - download_overhead(controls=controls, selection=federation.agreed)
    return room // 2 if controls and not federation.derives_control else room


def pack_downloads(
    federation: Federation,
    state: ServerState,
    reference: Reference,
    server_round: int,
    clients: Iterable[int],
    *,
    control: bytes | None = None,
    trains: bool = True,
) -> tuple[ServerState, dict[int, bytes]]:
    """Return the state that knows of the clients' downloads, and the downloads."""
    downloads = {}
    for client in clients:
        state, downloads[client] = _download(
            federation, state, reference, server_round, client, control=control, trains=trains
        )
    return state, downloads


def _download(
    federation: Federation,
    state: ServerState,
    reference: Reference,
    server_round: int,
    client: int,
    *,
    control: bytes | None,
    trains: bool,
) -> tuple[ServerState, bytes]:
    """Return the state that knows of a client's download, and the download."""
    derives, version = trains and federation.derives_control, reference.version
    missed = missed_steps(federation, state, client) if derives and state.control_since != server_round else None
    download = reference.download(
        state.held[client],
        server_round=server_round,
        acknowledged_round=state.folded.get(client, 0),
        cannot_build=client in state.cannot_build and state.held[client] == 0,
        one_by_one=missed is not None,
    )
    if derives:
        # Where c begins anew, one that missed a version knows it as well as the others.
        behind = version > 0 and state.held[client] != version - 1 and state.control_since != server_round
        if behind and missed is None:
            state = replace(state, control_staleness={**state.control_staleness, client: 1.0})
        valid = knows_control(federation, state, client)
        derived = derived_control(federation, state, server_round, valid=valid)
        download = replace(download, derived=replace(derived, missed=missed or ()))
    elif trains and control is not None:
        download = replace(download, control=control)
    elif not trains:
        download = replace(download, statistics=state.statistics)
    if download.base_version != state.held[client]:
        # The client keeps what it was led from and what it is led to, and nothing else.
        state = replace(state, held={**state.held, client: download.base_version})
    return state, pack_download(download, federation.blueprint.layout)


def _aggregator(federation: Federation, state: ServerState) -> Aggregator:
    """Return what this round's updates are folded into."""
    config, layout = federation.blueprint.config, federation.blueprint.layout
    settings: AverageSettings = {
        "layout": layout,
        "encoder": state.encoder,
        "control": state.control,
        "total_examples": sum(state.shares.values()),
        "learning_rate": config.server.learning_rate if state.moments is None else 1.0,
    }
    if config.privacy.noise_multiplier is not None:
        return PrivateAggregator(
            clip=config.privacy.clip,
            noise_multiplier=config.privacy.noise_multiplier,
            num_expected=config.num_participants,
            noise=np.random.default_rng(secrets.randbits(256)),  # not the run's seed, which the clients know
            **settings,
        )
    settings["held_control"] = state.held_control
    settings["damping"] = config.control.damping
    if config.row.dynamic:
        return DynamicAggregator(alpha=config.training.dynamic_alpha, **settings)
    settings["normalizes"] = config.row.normalizes
    settings["by_entry"] = config.trains_parts
    rule = aggregation_rule(config.server.aggregation)
    return rule.make(trim_fraction=config.server.trim_fraction, **settings)
