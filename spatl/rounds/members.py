"""Members of a federation from round to round: who is asked, who comes, who goes, and who is waited for in vain."""

import logging
from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import TypeVar

from spatl.rounds.federation import Federation
from spatl.rounds.opened_control import with_control_anew
from spatl.rounds.sampling import able_clients, sample_clients
from spatl.rounds.server_state import ServerState
from spatl.rounds.weights import bounded_weights

Value = TypeVar("Value")

logger = logging.getLogger(__name__)


def rejoined(
    state: ServerState, num_examples: Mapping[int, int], *, cannot_build: Collection[int] = (), max_weight: float = 1.0
) -> ServerState:
    """Return the state of a run that goes on, once its clients have registered again.

    Who is away for a while has a share in c as before. The c_i of one that is new is 0, and p_i is less for all others.

    Args:
        state: The server's, between two rounds.
        num_examples: Training examples of each client that has registered (n_i).
        cannot_build: The clients whose initial encoder is another one than the server's, so that it is sent to them.
        max_weight: The largest share of a client.
    """
    known, everyone = state.shares, {**state.num_examples, **num_examples}
    weights = {**state.weights, **bounded_weights(everyone, max_weight, known=known)}
    control = state.control
    if control is not None and known:
        control = control * (sum(known.values()) / sum({**everyone, **weights}.values()))
    return replace(
        state,
        control=control,
        num_examples=everyone,
        weights=weights,
        held={**dict.fromkeys(everyone, 0), **state.held},
        control_staleness={**dict.fromkeys(everyone, 1.0), **state.control_staleness},
        cannot_build=state.cannot_build | frozenset(cannot_build),
    )


def retired(state: ServerState, clients: Collection[int], server_round: int) -> ServerState:
    """Return the state of a run without clients that were taken out of it: p_i is the share of the others alone.

    c = sum p_i c_i over the others. What c contains of one that is gone the server does not know, for it keeps no c_i:
    then c and all c_i begin anew (`spatl.rounds.opened_control`). Where c contains nothing of it, the parts of the
    others grow alike. What it has moved x by, stays.

    Args:
        state: The server's, between two rounds.
        clients: Those that are gone.
        server_round: The round that is next.
    """
    gone = set(clients) & state.num_examples.keys()
    if not gone:
        return state
    before, contained = sum(state.shares.values()), bool(gone & (state.folded.keys() | state.forgotten))
    seen = state.admission
    state = replace(
        state,
        num_examples=_without(state.num_examples, gone),
        weights=_without(state.weights, gone),
        folded=_without(state.folded, gone),
        held=_without(state.held, gone),
        control_staleness=_without(state.control_staleness, gone),
        cannot_build=state.cannot_build - gone,
        admission=replace(
            seen, failures=_without(seen.failures, gone), away=_without(seen.away, gone),
            trust=_without(seen.trust, gone), by_client=_without(seen.by_client, gone),
            agreed=_without(seen.agreed, gone),
        ),
    )  # fmt: skip
    if state.control is None or not state.num_examples:
        return state
    if contained:
        return with_control_anew(state, server_round)
    return replace(state, control=state.control * (before / sum(state.shares.values())))


def _without(values: Mapping[int, Value], clients: Collection[int]) -> dict[int, Value]:
    return {client: value for client, value in values.items() if client not in clients}


def choose_clients(
    federation: Federation, state: ServerState, server_round: int, *, without: Collection[int] = ()
) -> tuple[tuple[int, ...], set[int]]:
    """Return the clients to ask in a round, and those that are left out because they keep failing.

    Args:
        federation: What holds for all rounds.
        state: The server's, between two rounds.
        server_round: The round, from 1.
        without: Clients that have said in this round that they rest: others are drawn, while there are any.
    """
    config = federation.blueprint.config
    seed = config.seed if state.sampling_seed is None else state.sampling_seed
    able = able_clients(config, sorted(federation.clients)) or sorted(federation.clients)
    admitted = state.admission.admitted(able, server_round)
    awake = [client for client in admitted if client not in without] or admitted
    chosen = sample_clients(awake, fraction=config.server.fraction_train, seed=seed, server_round=server_round)
    return chosen, set(able) - set(admitted)


def without_answer(
    federation: Federation, state: ServerState, server_round: int, silent: Collection[int]
) -> ServerState:
    """Return the state after a round that waited in vain for clients that were there: each such wait is a failure.

    Otherwise a device that hangs would cost each round the whole of `server.round_timeout_seconds`.

    Args:
        federation: What holds for all rounds.
        state: The server's.
        server_round: The round.
        silent: Clients that were connected, were asked, and did not answer.
    """
    if not silent:
        return state
    server = federation.blueprint.config.server
    admission = state.admission.after(
        server_round, folded={}, refused=silent, max_failures=server.max_failures, rounds_away=server.rounds_away
    )
    for client in sorted(silent):
        if admission.failures[client] >= server.max_failures:
            logger.warning(
                "round %d: client %d is connected and did not answer, its failure %d in a row: it is left out of the "
                "next %d rounds", server_round, client, admission.failures[client], server.rounds_away,
                extra={"round": server_round, "client": client},
            )  # fmt: skip
    return replace(state, admission=admission)
