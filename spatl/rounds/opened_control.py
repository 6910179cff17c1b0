"""Control variates of the server as a round opens: faded, sent or derived, and begun anew where one of them is lost.

c is the weighted sum of the c_i (SCAFFOLD, algorithm 1) only while every client has the c_i that its updates made. A
device whose disk is lost, or put back from an older copy, has another one. It sees that, since the server tells it the
last round that was folded in, and says so (`ControlLost`); what c holds of it cannot be taken out, because the server
keeps no c_i.
"""

import logging
from dataclasses import replace

import torch
from torch import Tensor

from spatl.rounds.control import fading, followed_control
from spatl.rounds.federation import Federation
from spatl.rounds.server_state import ServerState
from spatl.seeding import generator
from spatl.wire.download import DerivedControl

logger = logging.getLogger(__name__)

_FRESH = 1e-8  # the c that a client derived counts as c once its stale share is less than this

RESTART_ROUNDS = 10
"""Control variates begin anew for the sake of lost ones at most once in so many rounds."""


def without_lost_control(state: ServerState, server_round: int) -> ServerState:
    """The state of a round that opens, in which c and all c_i begin anew if c contains one that its client has lost.

    What a client lost nobody knows, so that it cannot be taken out of c. No message says that it is so: every client is
    told that nothing of it is part of c, and then its c_i is 0.
    """
    if state.control is None or not state.forgotten:
        return state
    if state.control_since and server_round < state.control_since + RESTART_ROUNDS:
        return state
    logger.warning(
        "round %d: the control variates of all begin anew: c contains what client %s has lost",
        server_round, ", ".join(map(str, sorted(state.forgotten))), extra={"round": server_round},
    )  # fmt: skip
    return with_control_anew(state, server_round)


def with_control_anew(state: ServerState, server_round: int) -> ServerState:
    """The state in which c and all c_i begin anew with the round that is next: c is 0 and contains nothing."""
    assert state.control is not None
    control = torch.zeros_like(state.control)
    return replace(state, control=control, folded={}, forgotten=frozenset(), control_since=server_round)


def with_control_opened(federation: Federation, state: ServerState, change: Tensor, server_round: int) -> ServerState:
    """The state with c and what is known of the clients' c as of a round that opens: faded, and derived anew."""
    if state.control is None or state.held_control is None:
        return state
    fade = fading(federation.blueprint.config.control.half_life, 1)
    control = state.control if fade == 1.0 else state.control * fade
    derived = derived_control(federation, state, server_round, valid=True)
    held = control
    if federation.derives_control:
        held = followed_control(state.held_control, change, derived, fading=fade)
    forgetting = fade * (1 - derived.damping)
    staleness = {client: share * forgetting for client, share in state.control_staleness.items()}
    steps = (*state.control_steps, (derived.damping, derived.step_weight))[-federation.most_missed - 1 :]
    return replace(
        state, control=control, held_control=held, control_staleness=staleness,
        control_steps=steps if federation.derives_control else (),
    )  # fmt: skip


def missed_steps(federation: Federation, state: ServerState, client: int) -> tuple[tuple[float, float], ...] | None:
    """Return damping and step weight of the changes that a client missed before the present one, the oldest first.

    None for a client that is led to the present by the sum of what it missed: it did not know c at the version that it
    holds, or has missed more than `control.catch_up` rounds, or more than the server remembers.
    """
    missed = state.versions.version - state.held[client] - 1
    remembered = min(len(state.control_steps), len(state.versions.changes)) - 1
    if missed < 1 or missed > min(federation.most_missed, remembered) or client in state.cannot_build:
        return None
    return state.control_steps[-missed - 1 : -1] if knows_control(federation, state, client) else None


def knows_control(federation: Federation, state: ServerState, client: int) -> bool:
    """Return whether a client is sent c, or has derived it from all that it needs."""
    return not federation.derives_control or state.control_staleness[client] < _FRESH


def derived_control(federation: Federation, state: ServerState, server_round: int, *, valid: bool) -> DerivedControl:
    """Return what the clients' c follows from; as float32, which is what they see of it.

    Where c begins anew, what they had for it counts nothing, and the change of x_hat less than any gradient.
    """
    if state.control_since == server_round:
        return DerivedControl(1.0, torch.finfo(torch.float32).max, valid)
    damping = federation.blueprint.config.control.damping * state.control_share
    before = server_round - 1  # the round whose updates x_hat moves along now
    step_weight = federation.mean_step_weight(state.num_examples, state.shares, before)
    return DerivedControl(_as_float32(damping), _as_float32(step_weight), valid)


def encoded_control(
    federation: Federation, control: Tensor, server_round: int, *, max_bytes: int | None
) -> tuple[bytes, Tensor]:
    """C encoded, and as the clients decode it, which is what c moves from."""
    config, layout = federation.blueprint.config, federation.blueprint.layout
    codec, places = federation.blueprint.codecs.downlink, layout.parameter_places
    rounding = generator(config.seed, "rounding-control", server_round=server_round)
    data = codec.encode(control, places, generator=rounding, max_bytes=max_bytes)
    return data, codec.decode(memoryview(data), places)


def _as_float32(number: float) -> float:
    """A number as the other side reads it from four bytes."""
    return float(torch.tensor(number, dtype=torch.float32))
