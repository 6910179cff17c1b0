"""Averages by the distances of a round's updates: multi-Krum, nearest-neighbour mixing, geometric median, clipping.

Updates differ in what they send, so that distances are taken over what two of them, or one of them and the average,
have in common, and scaled to the size of the whole: with P parameters, of which a set J is common to i and k,

    d_ik^2 = P / |J| sum_J (D_ij - D_kj)^2

and two that have nothing in common are infinitely far apart. Only parameters count for distances. Statistics, and what
too few sent, are what `RankedAggregator` makes of them. Who is near to whom does not depend on numbers of examples, and
means are weighted by them, as RFA's are and as everywhere else: ten clients of which each counts alike lose points
where nobody is bad (docs/robustness.md). Where they are the clients' word, `server.max_weight` bounds them.
"""

import hashlib
import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from spatl.rounds.robust import RankedAggregator, in_parts, num_trimmed, ranked, trimmed_mean

_CLIPPINGS = 3
_WEISZFELD_STEPS = 50
_CONVERGED = 1e-9
_SMOOTHING = 1e-9  # of the usual distance: an update at the median itself weighs no more than this lets it
_NARROWEST = 1e-9  # of the weight: what remains of it at the least
_SMALLEST = 1e-300  # for nothing but not to divide by zero


class DistanceAggregator(RankedAggregator):
    """An average that the distances between a round's updates decide.

    Its updates are put in an order of their own first, by what they hold, so that sums do not depend on whose came
    first.
    """

    def _moves(self) -> Iterator[tuple[slice, Tensor]]:
        length = self._layout.num_parameter_entries
        numbers = [number for number, _ in self._step_weights]
        found = [(each[:length], number) for each, number in zip(self._kept, numbers, strict=True)]
        found.sort(key=lambda each: (hashlib.sha256(each[0].numpy().data).digest(), each[1]))
        if found and length:
            weights = torch.tensor([number for _, number in found], dtype=torch.float64)
            yield from self._moves_of([values for values, _ in found], weights / weights.sum())
        for part, values in in_parts(self._kept, start=length):
            yield part, trimmed_mean(*ranked(values), 0.5)

    def _moves_of(self, updates: Sequence[Tensor], weights: Tensor) -> Iterator[tuple[slice, Tensor]]:
        """Yield some parameters at a time, and how far they move, float64.

        Args:
            updates: K of them, float32 [P], NaN where an entry was not sent.
            weights: float64 [K], their shares of the examples.
        """
        raise NotImplementedError

    def _num_bad(self, most: int) -> int:
        """How many of the round's updates may be bad, f: `trim_fraction` of them, rounded up, and at most so many."""
        return max(0, min(num_trimmed(self._trim_fraction, len(self._kept)), most))


class MultiKrumAggregator(DistanceAggregator):
    """The mean of the K - f updates whose K - f - 2 nearest others are nearest (multi-Krum, arXiv 1703.02757).

    Nearness is the sum of squared distances; f is `trim_fraction` of K, rounded up, and at most (K - 3) / 2.
    """

    def _moves_of(self, updates: Sequence[Tensor], weights: Tensor) -> Iterator[tuple[slice, Tensor]]:
        number = len(updates)
        bad = self._num_bad((number - 3) // 2)
        scores = distances(updates).square().sort(dim=1).values[:, 1 : max(1, number - bad - 2) + 1].sum(dim=1)
        chosen = torch.zeros(number, dtype=torch.float64)
        chosen[scores.argsort(stable=True)[: number - bad]] = 1.0
        for part, values in in_parts(updates):
            yield part, mean_of_senders(values, (chosen * weights)[None])[0].nan_to_num(nan=0.0)


class NearestNeighboursAggregator(DistanceAggregator):
    """The trimmed mean of what each update becomes as the mean of the K - f nearest to it (NNM, arXiv 2302.01772).

    An update is one of those nearest to itself; f is `trim_fraction` of K, rounded up, and less than K / 2. An entry of
    a mixed update is the mean of those among the nearest that sent it. The trimmed mean is weighted as well: at either
    end, `trim_fraction` of the examples are left out.
    """

    def _moves_of(self, updates: Sequence[Tensor], weights: Tensor) -> Iterator[tuple[slice, Tensor]]:
        number = len(updates)
        nearest = distances(updates).argsort(dim=1, stable=True)[:, : number - self._num_bad((number - 1) // 2)]
        mixing = torch.zeros(number, number, dtype=torch.float64).scatter_(1, nearest, 1.0) * weights
        for part, values in in_parts(updates):
            yield part, weighted_trimmed_mean(mean_of_senders(values, mixing), weights, self._trim_fraction)


class ClippingAggregator(DistanceAggregator):
    """A centre, moved three times by the mean of what the updates differ from it, clipped (arXiv 2012.10333).

    What a client sent differs from the centre by a distance over what it sent, scaled to the whole; it is clipped to
    the lower median of these distances. The paper leaves the radius to be tuned and starts from the round before; here
    nothing is remembered, and the first centre is the median by entry.
    """

    def _moves_of(self, updates: Sequence[Tensor], weights: Tensor) -> Iterator[tuple[slice, Tensor]]:
        centre = torch.cat([trimmed_mean(*ranked(values), 0.5) for _, values in in_parts(updates)])
        for _ in range(_CLIPPINGS):
            away = _away(updates, centre)
            radius = away.sort().values[(len(away) - 1) // 2]
            factors = torch.where(away > radius, radius / away, 1.0)[:, None]
            for part, values in in_parts(updates):
                clipped = factors * (values - centre[part])
                centre[part] += mean_of_senders(clipped, weights[None])[0].nan_to_num(nan=0.0)
        for part, _ in in_parts(updates):
            yield part, centre[part]


class GeometricMedianAggregator(DistanceAggregator):
    """The point whose weighted distances to all updates have the least sum (RFA, arXiv 1912.13445).

    By smoothed Weiszfeld steps: from the mean on, each is the mean of those that sent an entry, with weights divided by
    their distances to the point before, over what they sent and scaled to the whole.
    """

    def _moves_of(self, updates: Sequence[Tensor], weights: Tensor) -> Iterator[tuple[slice, Tensor]]:
        point = _mean(updates, weights)
        for _ in range(_WEISZFELD_STEPS):
            away = _away(updates, point)
            usual = float(away.median())
            if usual == 0:
                break
            moved = _mean(updates, weights * usual / away.clamp(min=_SMOOTHING * usual))
            change, point = float((moved - point).norm()), moved
            if change <= _CONVERGED * float(point.norm()):
                break
        for part, _ in in_parts(updates):
            yield part, point[part]


def _mean(updates: Sequence[Tensor], weights: Tensor) -> Tensor:
    """float64 [P], the weighted mean of those that sent an entry; 0 where nobody did."""
    return torch.cat([mean_of_senders(values, weights[None])[0].nan_to_num(nan=0.0) for _, values in in_parts(updates)])


def distances(updates: Sequence[Tensor]) -> Tensor:
    """Return the distances of K updates [P], NaN where an entry was not sent, over what two have in common.

    Returns:
        float64 [K, K], scaled to all P entries; infinite where nothing is common, and 0 on the diagonal.
    """
    number = len(updates)
    squares, common = (torch.zeros(number, number, dtype=torch.float64) for _ in range(2))
    for _, values in in_parts(updates):
        sent = ~values.isnan()
        for one in range(number):
            both = sent & sent[one]
            squares[one] += torch.where(both, (values - values[one]).square(), 0.0).sum(dim=1)
            common[one] += both.sum(dim=1)
    scaled = (squares * (len(updates[0]) / common.clamp(min=1))).sqrt()
    return torch.where(common > 0, scaled, math.inf).fill_diagonal_(0.0)


def _away(updates: Sequence[Tensor], point: Tensor) -> Tensor:
    """float64 [K]: how far updates are from a point [P], over what each sent, scaled to all entries; 0 of nothing."""
    squares, number = (torch.zeros(len(updates), dtype=torch.float64) for _ in range(2))
    for part, values in in_parts(updates):
        sent = ~values.isnan()
        squares += torch.where(sent, (values - point[part]).square(), 0.0).sum(dim=1)
        number += sent.sum(dim=1)
    return (squares * (len(point) / number.clamp(min=1))).sqrt()


def mean_of_senders(values: Tensor, weights: Tensor) -> Tensor:
    """Return the means [M, V] of values [K, V] with weights [M, K], over those that are not NaN; NaN of none."""
    sent = (~values.isnan()).double()
    return (weights @ torch.where(sent > 0, values, 0.0)) / (weights @ sent)


def weighted_trimmed_mean(values: Tensor, weights: Tensor, share: float) -> Tensor:
    """Return the means [V] of values [K, V] with weights [K], without a share of the weight at either end.

    NaN does not count; of a half, a median remains.

    Args:
        values: float64, NaN for none.
        weights: float64, none below 0.
        share: In [0, 0.5].
    """
    ascending, order = values.sort(dim=0)
    own = torch.where(ascending.isnan(), 0.0, weights[order])
    ends, total = own.cumsum(dim=0), own.sum(dim=0)
    first = torch.minimum(share * total, total / 2 * (1 - _NARROWEST))
    kept = torch.minimum(ends, total - first) - torch.maximum(ends - own, first)
    kept = kept.clamp(min=0)
    return torch.where(ascending.isnan(), 0.0, ascending * kept).sum(dim=0) / kept.sum(dim=0).clamp(min=_SMALLEST)
