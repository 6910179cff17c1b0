"""Progress of a run: whether it can go on after a round, and why not."""

import math
import statistics
from dataclasses import replace

from torch import Tensor

from spatl.channels.vectors import all_finite
from spatl.errors import DivergedError, SpatlError
from spatl.rounds.answers import Outcome
from spatl.rounds.federation import Federation
from spatl.rounds.server_state import ServerState

_DIVERGED_LOSS_FACTOR = 10.0  # a median training loss this many times the first round's is not training any more
_USELESS_ROUNDS = 3  # so many rounds in a row with nothing usable end a run


def checked_progress(
    federation: Federation, state: ServerState, server_round: int, outcome: Outcome, encoder: Tensor
) -> tuple[ServerState, SpatlError | None]:
    """Return what is remembered of a run's progress, and why it cannot go on; None where it can."""
    useless_rounds = 0 if outcome.trained else state.useless_rounds + 1
    state = replace(state, useless_rounds=useless_rounds)
    lasting = outcome.rejected.keys() - outcome.not_now - outcome.forgot
    if federation.of_devices and not outcome.trained and not lasting:
        return replace(state, useless_rounds=0), None  # they are away, or rest, or begin anew: it passes
    if useless_rounds == _USELESS_ROUNDS and not outcome.rejected:
        return state, SpatlError(
            f"round {server_round}: no client has answered for {useless_rounds} rounds; "
            "when they are back, go on with --resume"
        )
    everyone_refused = len(outcome.rejected) == len(federation.clients) > 1
    if everyone_refused or useless_rounds == _USELESS_ROUNDS:
        return state, _nothing_usable(server_round, outcome)
    if not outcome.trained:
        return state, None
    # The median, so that one client's number neither stops a run nor hides that it should stop.
    loss = statistics.median(report.train_loss for report in outcome.trained.values())
    first_loss = state.first_loss
    if first_loss is None:
        # Clients of one class each start with next to no loss, and those of a later round with a guess's.
        first_loss = max(loss, 1.0, math.log(federation.blueprint.dataset.num_classes))
    state = replace(state, first_loss=first_loss)
    finite = all_finite(encoder)
    if finite and loss <= _DIVERGED_LOSS_FACTOR * first_loss:
        return state, None
    what = f"the median training loss is {loss:.3g}" if finite else "the average is not finite"
    damping = " or control.damping" if federation.blueprint.config.row.controls else ""
    return state, DivergedError(
        f"the run diverged in round {server_round}: {what}, the loss started at {first_loss:.3g}; "
        f"lower training.learning_rate{damping}, or server.learning_rate if it is above 1"
    )


def _nothing_usable(server_round: int, outcome: Outcome) -> SpatlError:
    """Return why a run ends in a round that refused every update, with the first client's traceback as a note."""
    client, reason = sorted(outcome.rejected.items())[0]
    told = (
        f"round {server_round}: no update could be used, {len(outcome.rejected)} were refused; "
        f"the first, of client {client}: {reason}"
    )
    diverged = outcome.diverged == set(outcome.rejected)
    ending = DivergedError(f"the run diverged in {told}") if diverged else SpatlError(told)
    if client in outcome.tracebacks:
        ending.add_note(outcome.tracebacks[client])
    return ending
