"""Findings: what each client finds out about the model of all on its own validation split, asked and answered.

The question is a download like that of an evaluation, and the answer one blob (`spatl.wire.findings`). Nothing of the
rounds' state changes by it, on neither side, so that it may be asked between any two rounds.
"""

import logging
from collections.abc import Iterable
from typing import Final

import torch

from spatl.errors import UpdateRejected
from spatl.models.copies import duplicate
from spatl.rounds.answers import Answer, ClientFailed, read_answers
from spatl.rounds.blueprint import Blueprint
from spatl.rounds.client_evaluation import take_statistics_
from spatl.rounds.client_state import ClientState
from spatl.rounds.demands import check_enough
from spatl.rounds.federation import Federation
from spatl.rounds.server_state import ServerState
from spatl.rounds.workplace import Workplace
from spatl.saliency.filters import main_filters
from spatl.saliency.findings import Findings, check_examples, features, findings_of
from spatl.wire.download import Model
from spatl.wire.findings import FindingsShape, pack_findings, unpack_findings

logger = logging.getLogger(__name__)

_FEWEST_OF_A_DEVICE: Final = 2
"""Examples of a class whose mean features go, whatever a run says: that of one is the example as a network sees it."""


def findings_shape(blueprint: Blueprint) -> FindingsShape:
    """Return the numbers that both sides know of a federation's findings, from its network."""
    num_features = 0
    if blueprint.config.report.prototype_examples is not None:
        num_features = features(duplicate(blueprint.model), blueprint.dataset.images[:1]).shape[1]
    return FindingsShape(main_filters(blueprint.model).num_filters, blueprint.dataset.num_classes, num_features)


def find_round(
    workplace: Workplace, client: int, received: Model, state: ClientState, *, least_examples: int = 1
) -> bytes:
    """Find out what a received model does on the client's validation split.

    It is the model that the client predicts with, but for its label offset: that of a client whose labels are wrong is
    made of these, and would hide them.

    Args:
        workplace: Where the client works.
        client: The client's partition id.
        received: The server's model, as `receive` returns it.
        state: The client's state, likewise.
        least_examples: Of fewer validation examples a client tells none, and no prototype of a class of one of them:
            both are a device's owner's to say.

    Returns:
        The packed findings.

    Raises:
        UpdateRejected: The run does not ask for them after this round, whatever the server says.
        ModelError: There is no validation example, or the model has diverged.
        NotAllowed: There are too few.
    """
    blueprint = workplace.blueprint
    config, number = blueprint.config, received.server_round
    if not config.report.asks_findings(number, last=config.may_be_last(number)):
        raise UpdateRejected(f"the server asks for findings after round {number}, which this run does not ask for")
    with workplace.prepared(client, received, state, with_offset=False) as own:
        take_statistics_(own)
        check_examples(len(own.data.validation), f"client {client}")
        check_enough(len(own.data.validation), least_examples, "validation")
        found = findings_of(
            own.model, own.data.validation, main_filters(own.model), own.data.train.targets,
            num_classes=blueprint.dataset.num_classes,
        )  # fmt: skip
    fewest = config.report.prototype_examples
    if fewest is not None and least_examples > 1:
        fewest = max(fewest, _FEWEST_OF_A_DEVICE)
    return pack_findings(
        found.without_small_classes(fewest), blueprint.layout, blueprint.codecs.uplink,
        server_round=number, version=received.version,
    )  # fmt: skip


def close_findings(
    federation: Federation, state: ServerState, server_round: int, answers: Iterable[Answer]
) -> dict[int, Findings]:
    """Read the clients' findings; what cannot be used is left out, with a warning.

    Args:
        federation: What holds for all rounds.
        state: The server's, as `open_evaluation` returned it with the questions.
        server_round: The round after which they were asked.
        answers: Each client that answered, once, in any order.
    """
    blueprint = federation.blueprint
    shape = findings_shape(blueprint)

    def read(client: int, blob: bytes) -> Findings:
        findings = unpack_findings(
            blob, blueprint.layout, blueprint.codecs.uplink, server_round=server_round, version=state.versions.version,
            shape=shape,
        )  # fmt: skip
        _check_labels(findings, state.num_examples[client])
        return findings

    found, reasons = read_answers(answers, read)
    for client, reason in sorted(reasons.items()):
        traceback = reason.traceback if isinstance(reason, ClientFailed) else ""
        facts = {"round": server_round, "client": client, **({"traceback": traceback} if traceback else {})}
        logger.warning("the findings of client %d are not used: %s", client, reason, extra=facts)
    return found


def _check_labels(findings: Findings, num_examples: int) -> None:
    told = int(torch.sum(findings.labels))
    if told != num_examples:
        raise UpdateRejected(f"it tells of {told} training examples, the client registered {num_examples}")
