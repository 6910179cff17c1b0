"""Nearest neighbours by profile: examples whose loss depends on the same filters (arXiv 2108.01335)."""

import torch
import torch.nn.functional as F
from torch import Tensor


def nearest(profiles: Tensor, among: Tensor, k: int, *, same: bool = False) -> tuple[Tensor, Tensor]:
    """Return the k examples with the most similar profiles, by cosine, the nearest first.

    Args:
        profiles: `[N, F]`, standardised.
        among: `[M, F]`, likewise.
        k: At most M, or M - 1 with `same`.
        same: Whether `among` is `profiles`: no example is then its own neighbour.

    Returns:
        int64 [N, k], the places in `among`, and the cosines, `[N, k]`; 0 with a profile of zeros.
    """
    cosines = F.normalize(profiles, dim=1) @ F.normalize(among, dim=1).T
    if same:
        cosines.fill_diagonal_(-torch.inf)
    values, places = cosines.sort(dim=1, descending=True, stable=True)
    return places[:, :k], values[:, :k]
