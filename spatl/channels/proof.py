"""Proof of channel readings: which layers read which channels, seen on random inputs rather than taken on trust.

A dependency graph computes indices; where a network reorders, splits or mixes channels (a flip, a channel shuffle, a
transposed view, gating by halves, LayerNorm) they may be those of other channels, without an error. So every claim is
tried on a copy. Some channels have all that writes them changed at once: slices of weights and biases, BatchNorm. The
inputs of exactly the layers that are said to read these channels must change, at exactly the places that are said.

Every layer goes on with the same random input whatever arrives, so that a change is seen by the first layers behind
it and by no later one. That makes one pass a trial of half of all channels at once: each has a code of its own that
says in which passes it is changed, and a place that reads one channel changes in the passes of that code and in no
other. All codes hold as many passes, so that none is part of another. The number of passes grows with the logarithm
of the number of channels; memory is that of one copy of the parameters and of the activations of two inputs.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from spatl.channels.perturbation import OUTPUT, Claims, Place, Trials, undisturbed
from spatl.errors import lacks_memory
from spatl.seeding import generator
from spatl.tensors.inputs import Inputs

_FEWEST_TRIALS, _MOST_TRIALS = 2, 12

_FEWEST_PASSES = 12


def refuted(network: nn.Module, values: Mapping[str, Tensor], example: Inputs, claims: Claims) -> dict[int, str]:
    """Try all claims, and return why the groups that fail do.

    Args:
        network: A copy on the CPU in eval mode that may be spoilt: its parameters become random.
        values: Its parameters and buffers by name as they were, whose size and sign the random ones take.
        example: [1, ...], an input it accepts; only its shape matters where it is of floating point.
        claims: What to prove. A group without a reader may change the model's output, but no layer's input.

    Returns:
        The reason by group, in the order of groups; nothing where all is proved. It is a function of the arguments.
    """
    groups = sorted(set(claims.group_of.tolist()) - {-1})
    if not groups:
        return {}
    try:
        with undisturbed(example), torch.no_grad():
            return dict(sorted(_refuted(Trials(network, values, example, claims), claims, groups).items()))
    except Exception as error:  # whatever a user's forward makes of random numbers
        if lacks_memory(error):
            raise
        reason = f"the model cannot be tried on random numbers: {' '.join(str(error).split())}"
        return dict.fromkeys(groups, reason)


def _refuted(trials: "Trials", claims: Claims, groups: Sequence[int]) -> dict[int, str]:
    group_of, faults = claims.group_of, _Faults()
    with_readers = {group for read in claims.read.values() for group in group_of[read[read >= 0]].tolist()}
    # What fails is taken out, until what is left is proved with nothing else changing.
    while left := with_readers - faults.groups.keys():
        kept = torch.isin(group_of, torch.tensor(sorted(left)))
        known = torch.cat([kept, torch.zeros(1, dtype=torch.bool)])
        own = replace(claims, read={name: read.where(known[read], -1) for name, read in claims.read.items()})
        wrong = _try_together_(faults, trials, own, kept)
        if left & faults.groups.keys():
            continue
        if not wrong:
            break
        _judge_(faults, trials, own, sorted(left), wrong, may_reach_output=False)
    rest = [group for group in groups if group not in with_readers]
    everything = torch.isin(group_of, torch.tensor(rest, dtype=torch.int64))[None]
    for trial in range(_FEWEST_TRIALS if rest else 0):
        reached = {place: pattern[:, 0] for place, pattern in trials.run(trial, everything).items()}
        wrong = {place: odd for place, odd in reached.items() if place.layer != OUTPUT and bool(odd.any())}
        if wrong:
            _judge_(faults, trials, claims, rest, wrong, may_reach_output=True)
            break
    return faults.told()


def _try_together_(faults: "_Faults", trials: "Trials", claims: Claims, channels: Tensor) -> dict["Place", Tensor]:
    """Try all claims of some channels (bool [C]) at once, until a trial finds faults.

    Returns:
        Bool [I] by place, what changed that none of them is said to change, where there is any.
    """
    group_of = claims.group_of
    wrong: dict[Place, Tensor] = {}
    seen: dict[Place, Tensor] = {}
    for trial in range(_MOST_TRIALS):
        codes = _codes(len(group_of), trial) & channels[:, None]
        for place, pattern in trials.run(trial, codes.T).items():
            read = _read(claims, place, pattern)
            # Index -1, an input that is no channel, reads the appended code of a channel that is never changed.
            expected = torch.cat([codes, torch.zeros(1, codes.shape[1], dtype=torch.bool)])[read]
            odd = (pattern & ~expected).any(1)
            for group in group_of[read[odd & (read >= 0)]].tolist():
                faults.add(group, "other channels reach {} than the graph says", place.layer)
            wrong[place] = wrong.get(place, torch.zeros_like(odd)) | odd
            seen[place] = seen.get(place, read < 0) | pattern.any(1)
        if not faults.groups.keys().isdisjoint(group_of[channels].tolist()):
            return {}
        if trial + 1 >= _FEWEST_TRIALS and all(bool(known.all()) for known in seen.values()):
            break
    for layer, read in claims.read.items():
        calls = [known for place, known in seen.items() if place.layer == layer]
        missing = ~torch.stack(calls).all(0) if calls else read >= 0
        for group in group_of[read[missing & (read >= 0)]].tolist():
            faults.add(group, "they were not seen to reach {}", layer)
    return {place: odd for place, odd in wrong.items() if bool(odd.any())}


def _judge_(
    faults: "_Faults", trials: "Trials", claims: Claims, groups: Sequence[int], wrong: Mapping["Place", Tensor], *,
    may_reach_output: bool,
) -> None:  # fmt: skip
    """Change groups one at a time, to see which of them changed what they are not said to change.

    Args:
        faults: Where to write it.
        trials: The network.
        claims: What is said.
        groups: Who may have done it.
        wrong: Bool [I] by place, what somebody was seen to change who should not.
        may_reach_output: Whether the model's output may change, as by the logits, which nobody reads.
    """
    changes = torch.stack([claims.group_of == group for group in groups])
    open_places = {place: odd.clone() for place, odd in wrong.items()}
    caught_at: set[Place] = set()
    for trial in range(_FEWEST_TRIALS, 3 * _FEWEST_TRIALS):
        for place, pattern in trials.run(trial, changes).items():
            owners = torch.cat([claims.group_of, torch.tensor([-1])])[_read(claims, place, pattern)]
            for row, group in enumerate(groups):
                odd = pattern[:, row] & (owners != group)
                if not bool(odd.any()) or (place.layer == OUTPUT and may_reach_output):
                    continue
                faults.add(group, "they reach {} otherwise than the graph says", place.layer)
                for other in set(owners[odd].tolist()) - {-1}:
                    faults.add(other, "other channels reach {} than the graph says", place.layer)
                if place in open_places:
                    open_places[place] &= ~odd
                    caught_at.add(place)
        if not any(bool(odd.any()) for odd in open_places.values()):
            break
    for place in open_places.keys() - caught_at:  # nobody can be shown to have done it, so that nobody is cleared
        for group in groups:
            faults.add(group, "they may reach {} as well", place.layer)


def _read(claims: Claims, place: "Place", pattern: Tensor) -> Tensor:
    """int64 [I]: the channel that each input is claimed to be, -1 for none."""
    read = claims.read.get(place.layer)
    return torch.full((len(pattern),), -1) if read is None else read


class _Faults:
    """Reasons why groups fail: the layers by what is wrong with them, by group."""

    def __init__(self) -> None:
        self.groups: dict[int, dict[str, list[str]]] = {}

    def add(self, group: int, what: str, layer: str) -> None:
        layers = self.groups.setdefault(group, {}).setdefault(what, [])
        if layer not in layers:
            layers.append(layer)

    def told(self) -> dict[int, str]:
        return {
            group: ", ".join(what.format(_listed(layers)) for what, layers in whats.items())
            for group, whats in self.groups.items()
        }


def _listed(layers: Sequence[str]) -> str:
    return " and ".join(layer if layer == OUTPUT else f"layer {layer}" for layer in layers)


def _codes(num_channels: int, trial: int) -> Tensor:
    """Bool [C, L]: in which passes of a trial each channel is changed, half of them. No two channels share two codes.

    Trials come in pairs, whose codes together are different for all channels.
    """
    length = _FEWEST_PASSES
    while math.comb(length, length // 2) ** 2 < 64 * num_channels:
        length += 2
    draw = generator(trial // 2, "proof of readings, codes")
    codes = torch.zeros(num_channels, 2, length, dtype=torch.bool)
    todo = torch.arange(num_channels)
    while len(todo):
        halves = torch.rand(len(todo), 2, length, generator=draw).argsort(2)[:, :, : length // 2]
        codes[todo] = torch.zeros(len(todo), 2, length, dtype=torch.bool).scatter_(2, halves, True)
        taken: set[tuple[bool, ...]] = set()
        again = []
        for channel, code in enumerate(map(tuple, codes.flatten(1).tolist())):
            again += [channel] if code in taken else []
            taken.add(code)
        todo = torch.tensor(again, dtype=torch.int64)
    return codes[:, trial % 2]
