"""Moments of profiles: count, mean and squared deviations of each filter, merged exactly over clients.

With n_i examples, means m_i and sums of squared deviations M_i on client i, those of all examples together are

    n = sum n_i       m = sum n_i m_i / n       M = sum (M_i + n_i (m_i - m)^2)

(Chan, Golub, LeVeque 1979). The sums are correctly rounded (`math.fsum`), so that the order of clients does not matter,
not in the last bit either. Sixteen bytes a filter and eight for the count are all that a client sends of its examples.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from spatl.errors import SpatlError


@dataclass(frozen=True, eq=False)
class Moments:
    """Count, means and squared deviations of values [N, F].

    Attributes:
        count: N, at least 1.
        means: float64 [F].
        squares: float64 [F], the sum over the examples of (value - mean)^2; none below 0.
    """

    count: int
    means: Tensor
    squares: Tensor

    @classmethod
    def of(cls, values: Tensor) -> "Moments":
        """Return the moments of values [N, F].

        Args:
            values: Of at least one example.
        """
        values = values.double().cpu()
        means = values.mean(0)
        return cls(len(values), means, (values - means).square().sum(0))

    @property
    def deviations(self) -> Tensor:
        """float64 [F]: standard deviations, of the examples as a population."""
        return (self.squares / self.count).sqrt()


def merged(moments: Iterable[Moments]) -> Moments:
    """Return the moments of all examples together, the same in any order.

    Args:
        moments: At least one, of the same number of filters.

    Raises:
        SpatlError: There is none, or they are of different numbers of filters.
    """
    parts = list(moments)
    if not parts:
        raise SpatlError("expected the profiles of at least one client to put together, got none")
    if len({each.means.shape for each in parts}) > 1:
        raise SpatlError("profiles of networks with different numbers of filters cannot be put together")
    count = sum(each.count for each in parts)
    counts = torch.tensor([each.count for each in parts], dtype=torch.float64)[:, None]
    own = torch.stack([each.means for each in parts])
    means = _sums(counts * own) / count
    squares = _sums(torch.cat([torch.stack([each.squares for each in parts]), counts * (own - means).square()]))
    return Moments(count, means, squares)


def standardised(values: Tensor, moments: Moments) -> Tensor:
    """Return z, float64: values in standard deviations from the mean, 0 for a filter that does not vary.

    Args:
        values: `[..., F]`.
        moments: Of the examples that say what is usual: a validation split, or those of all clients
            (arXiv 2108.01335).
    """
    means, deviations = (each.to(values.device) for each in (moments.means, moments.deviations))
    varies = deviations > 0
    return torch.where(varies, (values.double() - means) / deviations.where(varies, torch.ones_like(deviations)), 0.0)


def _sums(rows: Tensor) -> Tensor:
    return torch.tensor([math.fsum(column) for column in rows.T.tolist()], dtype=torch.float64)
