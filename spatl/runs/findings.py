"""Findings of a run's clients in a file for each round that they were asked in: what `spatl.diagnosis` reads.

A file has numbers alone, sealed: `CLIENT.means` and the like, and a header with the names of layers and classes. Equal
findings are equal bytes, so that a round that is done again after a crash leaves the file that it would have left.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from spatl.errors import DamagedState, SpatlError
from spatl.runs.files import FINDINGS, MARKS
from spatl.runs.marks import marked_files, read_marked, remove_marked, replace_marked
from spatl.saliency.filters import FilterLayer, Filters
from spatl.saliency.findings import Findings, fault_of
from spatl.saliency.moments import Moments
from spatl.sealed_files import seal, unseal

_FORMAT = 1
_NAME = re.compile(FINDINGS + r"/([1-9][0-9]*)\.safetensors")
_DTYPES = {
    "means": torch.float64, "squares": torch.float64, "counts": torch.int64, "losses": torch.float64,
    "correct": torch.int64, "class_profiles": torch.float32, "prototypes": torch.float32, "labels": torch.int64,
}  # fmt: skip
"""What a file has of each client."""


@dataclass(frozen=True, eq=False)
class FindingsRecord:
    """Findings of all clients that answered in one round.

    Attributes:
        round: The round after which the model stood that they are about.
        filters: Of the model, F of them: names and kinds of the layers, and how many each has.
        class_names: K of them.
        by_client: By partition id, ascending; whoever did not answer, or whose answer was refused, is not in it.
    """

    round: int
    filters: Filters
    class_names: tuple[str, ...]
    by_client: Mapping[int, Findings]


def write_findings(
    run: Path, server_round: int, findings: Mapping[int, Findings], *, filters: Filters, class_names: Sequence[str]
) -> Path:
    """Write the findings of a round in the place of those before, whole; return the file.

    Args:
        run: The run's directory.
        server_round: The round, from 1.
        findings: By client.
        filters: Of the model.
        class_names: K of them.
    """
    tensors = {
        f"{client}.{name}": values.to(_DTYPES[name])
        for client, each in sorted(findings.items())
        for name, values in _tensors(each).items()
    }
    header = {
        "round": server_round,
        "clients": sorted(findings),
        "class_names": list(class_names),
        "filters": [[each.name, each.kind, each.num_filters, each.groups] for each in filters.layers],
    }
    path = run / _file_of(server_round)
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_marked(run, _file_of(server_round), seal(tensors, header, version=_FORMAT))
    return path


def read_findings(run: Path, server_round: int | None = None) -> FindingsRecord:
    """Return the findings of a round, checked.

    Args:
        run: The run's directory.
        server_round: The round; None for the last one that has any.

    Raises:
        SpatlError: There are none, or they are of another version's format.
        DamagedState: The file is not as it was written, or what it says cannot be.
    """
    rounds = findings_rounds(run)
    for number in rounds:
        if not (run / _file_of(number)).exists():
            raise DamagedState(
                f"{run / _file_of(number)} is not there, which the run left: put it back from a copy, or delete "
                f"{MARKS} to go on without it"
            )
    if not rounds:
        raise SpatlError(f"{run} has no findings of its clients: set report.findings, and run it")
    chosen = rounds[-1] if server_round is None else server_round
    if chosen not in rounds:
        raise SpatlError(f"round {chosen} of {run} has no findings; these have: {', '.join(map(str, rounds))}")
    path = run / _file_of(chosen)
    try:
        data = read_marked(run, _file_of(chosen))
    except OSError as error:
        raise SpatlError(f"cannot read {path}: {error.strerror}") from error
    try:
        record = _record(*unseal(data, version=_FORMAT, what="the file of findings"))
    except (KeyError, TypeError, ValueError) as error:
        raise DamagedState(f"the file of findings is damaged: {type(error).__name__}: {error} ({path})") from error
    except SpatlError as error:
        raise type(error)(f"{error} ({path})") from error
    if record.round != chosen:
        raise DamagedState(f"{path} has the findings of round {record.round}")
    return record


def findings_rounds(run: Path) -> list[int]:
    """Return the rounds that have findings, ascending; also those whose file the run left and somebody took away.

    Args:
        run: The run's directory.
    """
    directory = run / FINDINGS
    names = {f"{FINDINGS}/{path.name}" for path in directory.iterdir()} if directory.is_dir() else set[str]()
    return sorted(int(found[1]) for name in names | marked_files(run) if (found := _NAME.fullmatch(name)))


def findings_by_round(run: Path) -> dict[int, list[int]]:
    """Return the clients whose findings each round has, ascending, as they stand in the files.

    Args:
        run: The run's directory.

    Raises:
        SpatlError: As of `read_findings`.
    """
    return {number: list(read_findings(run, number).by_client) for number in findings_rounds(run)}


def forget_findings(run: Path, *, after: int) -> None:
    """Remove the findings of rounds that will be done again.

    Args:
        run: The run's directory.
        after: The last round that is over.
    """
    for number in findings_rounds(run):
        if number > after:
            remove_marked(run, _file_of(number))


def _file_of(server_round: int) -> str:
    return f"{FINDINGS}/{server_round}.safetensors"


def _tensors(findings: Findings) -> dict[str, Tensor]:
    own = {"means": findings.moments.means, "squares": findings.moments.squares}
    return own | {name: getattr(findings, name) for name in _DTYPES if name not in own}


def _record(tensors: Mapping[str, Tensor], header: Mapping[str, Any]) -> FindingsRecord:
    """Return what a file says.

    Raises:
        DamagedState: It cannot be.
        KeyError, TypeError, ValueError: Something is not there, or of another kind.
    """
    layers, start = list[FilterLayer](), 0
    for name, kind, number, groups in header["filters"]:
        layers.append(FilterLayer(str(name), str(kind), start, int(number), int(groups)))
        start += layers[-1].num_filters
    class_names, clients = tuple(map(str, header["class_names"])), [int(each) for each in header["clients"]]
    if set(tensors) != {f"{client}.{name}" for client in clients for name in _DTYPES}:
        raise DamagedState("the file of findings has other clients than it says")
    by_client = dict[int, Findings]()
    for client in clients:
        own = {name: tensors[f"{client}.{name}"] for name in _DTYPES}
        if wrong := [name for name, dtype in _DTYPES.items() if own[name].dtype != dtype]:
            raise DamagedState(f"the {wrong[0]} of client {client} are {own[wrong[0]].dtype}")
        moments = Moments(int(own["counts"].sum()), own.pop("means"), own.pop("squares"))
        by_client[client] = Findings(moments=moments, **own)
        if fault := fault_of(by_client[client], num_filters=start, num_classes=len(class_names)):
            raise DamagedState(f"the findings of client {client} cannot be: {fault}")
    return FindingsRecord(int(header["round"]), Filters(tuple(layers)), class_names, by_client)
