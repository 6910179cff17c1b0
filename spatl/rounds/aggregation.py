"""Index-based averaging of sparse updates, and the control variate that follows from it (DESIGN 2.3).

Replies are folded in one by one and released: memory does not grow with the number of clients. The result does not
depend on the order they came in, because sums are kept in fixed point, where addition is associative.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from spatl.channels.layout import EncoderLayout
from spatl.errors import UpdateRejected
from spatl.wire.protocol import Update

_HIGH_BITS = 8  # the high limb counts units of 2**-8,
_LOW_BITS = 58  # the low limb units of 2**-58
_LARGEST_TERM = 2.0**42
_BITS_OF_EXAMPLES = 20
_TERMS_BETWEEN_CARRIES = 4096


class ExactSum:
    """A vector of sums that are independent of the order of their terms.

    Each float64 term is rounded once, to a multiple of 2**-58, and added as two integers.
    """

    def __init__(self, length: int) -> None:
        self._high = torch.zeros(length, dtype=torch.int64)
        self._low = torch.zeros(length, dtype=torch.int64)
        self._num_terms = 0

    def add_(self, indices: Tensor, terms: Tensor) -> None:
        """Add float64 `terms` [V] at `indices` int64 [V], which do not repeat."""
        high = torch.floor(terms * 2.0**_HIGH_BITS)
        low = torch.round((terms - high * 2.0**-_HIGH_BITS) * 2.0**_LOW_BITS)
        self._high[indices] += high.to(torch.int64)
        self._low[indices] += low.to(torch.int64)
        self._num_terms += 1
        if self._num_terms % _TERMS_BETWEEN_CARRIES == 0:
            carry = self._low >> (_LOW_BITS - _HIGH_BITS)
            self._high += carry
            self._low -= carry << (_LOW_BITS - _HIGH_BITS)

    def total(self, part: slice = slice(None)) -> Tensor:
        """float64, the sums of a part of the vector."""
        # Carried to the end first, so that the same integers always round the same way.
        carry = self._low[part] >> (_LOW_BITS - _HIGH_BITS)
        low = self._low[part] - (carry << (_LOW_BITS - _HIGH_BITS))
        high = self._high[part] + carry
        return high.to(torch.float64) * 2.0**-_HIGH_BITS + low.to(torch.float64) * 2.0**-_LOW_BITS


class Aggregator:
    """One round's average: `add` every update, then read `encoder` and `control` once.

    Args:
        layout: The shared encoder.
        encoder: float32 [N], x.
        control: float32 [P], c; None where gradients are not corrected.
        held_control: float32 [P], c as the clients hold it, which they correct their gradients with; c itself if not
            given.
        total_examples: Training examples over ALL clients of the federation, participants or not: p_i = n_i / total.
        learning_rate: eta_g.
        damping: rho in (0, 1], the share of the way c moves towards its new estimate.
        normalizes: Whether updates are divided by their step weight and rescaled by its mean (FedNova, eq. 5).
    """

    def __init__(
        self,
        layout: EncoderLayout,
        encoder: Tensor,
        control: Tensor | None,
        *,
        held_control: Tensor | None = None,
        total_examples: int,
        learning_rate: float = 1.0,
        damping: float = 1.0,
        normalizes: bool = False,
    ) -> None:
        self._layout = layout
        self._encoder = encoder
        self._control = control
        self._held_control = control if held_control is None else held_control
        self._total_examples = total_examples
        self._learning_rate = learning_rate
        self._damping = damping
        self._normalizes = normalizes
        # A power of two, so that counts are scaled without rounding: of however many millions a client holds, what its
        # values may be is the same.
        self._unit = 2.0 ** -max(0, total_examples.bit_length() - _BITS_OF_EXAMPLES)
        self._updates = ExactSum(layout.num_entries)
        self._gradients = ExactSum(layout.num_parameter_entries if control is not None else 0)
        self._examples = torch.zeros(layout.num_channels, dtype=torch.int64)  # over the clients that sent a channel
        self._corrected = torch.zeros(layout.num_channels, dtype=torch.int64)  # over those of them with control
        self._step_weights: list[tuple[int, float]] = []

    @property
    def num_updates(self) -> int:
        """How many updates were folded in."""
        return len(self._step_weights)

    def add(self, update: Update, num_examples: int) -> None:
        """Fold one client's update in.

        Args:
            update: What the client sent, decoded and checked.
            num_examples: n_i, its number of training examples.

        Raises:
            UpdateRejected: `num_examples` or a value is absurdly large; nothing was added.
        """
        if num_examples < 1:
            raise UpdateRejected(f"num-examples must be at least 1, got {num_examples}")
        for _, terms, _, gradients in self._terms(update, num_examples):
            for quantity in (terms, gradients):
                if quantity.numel() and not float(quantity.abs().max()) < _LARGEST_TERM:
                    raise UpdateRejected(
                        f"a value times {num_examples} examples exceeds {_LARGEST_TERM / self._unit:.3g}"
                    )
        corrected = self._control is not None and update.corrected
        for entries, terms, parameters, gradients in self._terms(update, num_examples):
            self._updates.add_(entries, terms)
            if corrected:
                self._gradients.add_(parameters, gradients)
        if corrected:
            self._corrected[update.selection.mask] += num_examples
        self._examples[update.selection.mask] += num_examples
        self._step_weights.append((num_examples, update.step_weight))

    def _terms(self, update: Update, num_examples: int) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor]]:
        """Some entries at a time, in float64: which they are and what is added, of x and of the gradients."""
        sent, weight = update.selection.entries(self._layout), num_examples * self._unit
        for start in range(0, len(sent), _PART):
            entries, values = sent[start : start + _PART], update.values[start : start + _PART].to(torch.float64)
            terms = values * weight
            is_parameter = entries < self._layout.num_parameter_entries
            if self._normalizes:
                terms[is_parameter] /= update.step_weight
            gradients = -values[is_parameter] / update.step_weight * weight
            yield entries, terms, entries[is_parameter], gradients

    def encoder(self) -> Tensor:
        """The encoder x after the round, float32 [N]: entries nobody sent keep their bits.

        Statistics are plain weighted means: a learning rate above 1 would extrapolate a variance below 0. What rounding
        takes below 0 all the same, is halved instead.
        """
        encoder = self._encoder.clone()
        factor = self._learning_rate * self._mean_step_weight()
        for part in _slices(self._layout.num_entries):
            examples = self._examples[self._layout.owner[part]]
            scale = torch.ones(len(examples), dtype=torch.float64)
            scale[: max(0, self._layout.num_parameter_entries - part.start)] = factor
            before = self._encoder[part]
            moved = before.to(torch.float64) + scale * self._total(self._updates, part) / examples.clamp(min=1)
            encoder[part] = torch.where(examples > 0, moved.to(torch.float32), before)
        return self._without_negative(encoder)

    def _without_negative(self, encoder: Tensor) -> Tensor:
        """The encoder, in place, with half of what a variance was where it would be below 0: it goes on from there."""
        for part in self._layout.variances:
            encoder[part] = torch.where(encoder[part] < 0, self._encoder[part] / 2, encoder[part])
        return encoder

    def _total(self, sums: ExactSum, part: slice = slice(None)) -> Tensor:
        return sums.total(part) / self._unit

    def _mean_step_weight(self) -> float:
        """What normalised updates are multiplied by: sum_i p_i a_i over the participants; 1 without normalisation."""
        if not self._normalizes or not self._step_weights:
            return 1.0
        return math.fsum(n * a for n, a in self._step_weights) / sum(n for n, _ in self._step_weights)

    def control(self) -> Tensor | None:
        """The control variate c after the round, float32 [P]: c moves as the c_i do, weighted over ALL clients.

        Each of those who were corrected moves its c_i by rho times (-D_i / a_i less c as it holds it); c moves by the
        weighted sum of that, so that it stays the weighted sum of the c_i whatever the clients hold for c.
        """
        if self._control is None or self._held_control is None:
            return None
        control = self._control.clone()
        for part in _slices(len(control)):
            examples = self._corrected[self._layout.owner[part]]
            before, held = (each[part].to(torch.float64) for each in (self._control, self._held_control))
            change = (self._total(self._gradients, part) - held * examples) / self._total_examples
            moved = (before + self._damping * change).to(torch.float32)
            control[part] = torch.where(examples > 0, moved, self._control[part])
        return control

    def control_share(self) -> float:
        """The share of all clients' examples that stood behind the change of c, in the mean over its entries."""
        length = self._layout.num_parameter_entries
        sizes = torch.bincount(self._layout.owner[:length], minlength=self._layout.num_channels)
        examples = int((self._corrected * sizes).sum())
        return min(1.0, examples / length / self._total_examples) if length else 0.0


class RobustAggregator(Aggregator):
    """An average that few clients cannot move far: by rank over the clients that sent an entry, each counting alike.

    Numbers of examples do not count, because they are the client's word. Every update is kept until the end, dense:
    as many encoders in float32 as there are replies. Only x is robust: c stays the weighted sum of the c_i, for a
    client whose update is folded in goes on with its own c_i (DESIGN 2.3).

    Args:
        rule: `median` or `trimmed-mean`.
        trim_fraction: The share of the senders that a trimmed mean leaves out at either end, in [0, 0.5).
        arguments: As of `Aggregator`.
    """

    def __init__(self, *arguments: Any, rule: str, trim_fraction: float, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._rule = _RULES[rule]
        self._trim_fraction = trim_fraction
        self._kept: list[Tensor] = []

    def add(self, update: Update, num_examples: int) -> None:
        """As of `Aggregator`."""
        super().add(update, num_examples)
        entries = update.selection.entries(self._layout)
        values = update.values
        if self._normalizes:
            values = torch.where(entries < self._layout.num_parameter_entries, values / update.step_weight, values)
        self._kept.append(_spread(values, entries, self._layout.num_entries))

    def encoder(self) -> Tensor:
        """As of `Aggregator`."""
        scale = torch.ones(self._layout.num_entries, dtype=torch.float64)
        scale[: self._layout.num_parameter_entries] = self._learning_rate * self._mean_step_weight()
        moved = torch.zeros(self._layout.num_entries, dtype=torch.float64)
        for part, values in _in_parts(self._kept):
            moved[part] = self._rule(*_ranked(values), self._trim_fraction)
        sent = (self._examples > 0)[self._layout.owner]
        return self._without_negative(
            torch.where(sent, (self._encoder.double() + scale * moved).float(), self._encoder)
        )


class PrivateAggregator(Aggregator):
    """An average that tells little of any one client: clipped updates, a fixed divisor, noise on ALL entries.

    The divisor does not depend on who chose an entry, and entries that nobody sent move by noise like the others, so
    that the choice of channels is covered with the values. Each client counts alike. With one client more or less, the
    sum before the noise changes by at most `clip`, in L2 norm.

    Args:
        clip: The longest that an update may be, L2 norm over all its entries; a longer one is scaled down to it.
        noise_multiplier: The noise's standard deviation, in units of `clip`.
        num_expected: How many clients are asked in a round: the divisor, whoever answers.
        noise: Draws the noise; nobody but the server may be able to repeat it.
        arguments: As of `Aggregator`; there is no control variate.
    """

    def __init__(
        self, *arguments: Any, clip: float, noise_multiplier: float, num_expected: int, noise: np.random.Generator,
        **named: Any,
    ) -> None:  # fmt: skip
        super().__init__(*arguments, **named)
        if self._control is not None or self._normalizes:
            raise ValueError("a private average has no control variate and no normalisation")
        self._clip = clip
        self._noise_multiplier = noise_multiplier
        self._num_expected = num_expected
        self._noise = noise

    def add(self, update: Update, num_examples: int) -> None:
        """As of `Aggregator`; `num_examples` does not count."""
        norm = float(torch.linalg.vector_norm(update.values.double()))
        # In float64, where a scaled update of float32 values is not longer than `clip` but for 2**-50 of it.
        values = update.values.double() * min(1.0, self._clip / norm) if norm else update.values.double()
        super().add(replace(update, values=values), 1)

    def encoder(self) -> Tensor:
        """The encoder x after the round, float32 [N]. Each call draws other noise and gives something away."""
        noise = self._noise.standard_normal(self._layout.num_entries)
        moved = self._total(self._updates) + self._noise_multiplier * self._clip * torch.from_numpy(noise)
        return self._without_negative(
            (self._encoder.double() + self._learning_rate / self._num_expected * moved).float()
        )


def agreements(updates: Sequence[Update], trusted: Sequence[bool], layout: EncoderLayout) -> list[float]:
    """How far each update points where the others do: its cosine with the median, by entry, of the trusted ones.

    Only parameters count, and what a client did not send is zero. Of fewer than two updates nothing can be said.

    Args:
        updates: A round's, decoded and checked, in any order.
        trusted: Whether each of them counts for the median; if none does, all do.
        layout: The shared encoder.

    Returns:
        A number in [-1, 1] for each update; 0 where it, or the median, is zero.
    """
    if len(updates) < 2:
        return [0.0] * len(updates)
    length, spread = layout.num_parameter_entries, []
    for update in updates:
        entries = update.selection.entries(layout)
        is_parameter = entries < length
        spread.append(_spread(update.values[is_parameter], entries[is_parameter], length))
    counts = torch.tensor(trusted if any(trusted) else [True] * len(updates))
    products, squares = (torch.zeros(len(updates), dtype=torch.float64) for _ in range(2))
    square_of_median = 0.0
    for _, values in _in_parts(spread):
        median = _median(*_ranked(values[counts]), 0.5)
        sent = torch.where(values.isnan(), 0.0, values)
        products += (sent * median).sum(dim=1)
        squares += sent.square().sum(dim=1)
        square_of_median += float(median.square().sum())
    lengths = (squares * square_of_median).sqrt()
    return torch.where(lengths > 0, products / lengths.clamp(min=_SMALLEST_LENGTH), 0.0).clamp(-1, 1).tolist()


def _slices(length: int) -> Iterator[slice]:
    """A vector in parts, because what is between float32 and float32 takes many times as much memory."""
    for start in range(0, length, _PART):
        yield slice(start, min(length, start + _PART))


def _spread(values: Tensor, entries: Tensor, length: int) -> Tensor:
    """float32 [length], NaN where there is no value."""
    return torch.full((length,), math.nan).index_copy_(0, entries, values)


def _in_parts(vectors: Sequence[Tensor]) -> Iterator[tuple[slice, Tensor]]:
    """Some entries at a time of K vectors of one length, as float64 [K, V], and which they are."""
    for start in range(0, len(vectors[0]) if vectors else 0, _CHUNK):
        part = slice(start, start + _CHUNK)
        yield part, torch.stack([vector[part] for vector in vectors]).double()


def _ranked(values: Tensor) -> tuple[Tensor, Tensor]:
    """`values` [K, V] in ascending order, NaN last, and the number of the others [V]."""
    return values.sort(dim=0).values, (~values.isnan()).sum(dim=0)


def _trimmed_mean(ranked: Tensor, number: Tensor, trim_fraction: float) -> Tensor:
    """Means [V] of `ranked` [K, V], NaN last, without the first and last of the `number` [V] values there are.

    A share is rounded up, so that one of three is left out as well, but something always remains.
    """
    share = trim_fraction * number.double() - _ROUNDING  # 0.15 of 100 is 15, not a little more
    trimmed = torch.minimum(torch.ceil(share).long().clamp(min=0), (number - 1).clamp(min=0) // 2)
    rank = torch.arange(len(ranked))[:, None]
    kept = (rank >= trimmed) & (rank < number - trimmed)
    return torch.where(kept, ranked, 0.0).sum(dim=0) / kept.sum(dim=0).clamp(min=1)


def _median(ranked: Tensor, number: Tensor, trim_fraction: float) -> Tensor:
    """Medians [V], the mean of the middle two where their number is even."""
    return _trimmed_mean(ranked, number, 0.5)


_CHUNK = 2**16
_PART = 2**20  # entries at a time where only one vector is worked on
_ROUNDING = 1e-9
_SMALLEST_LENGTH = 1e-300  # for nothing but not to divide by zero
_RULES: dict[str, Callable[[Tensor, Tensor, float], Tensor]] = {"median": _median, "trimmed-mean": _trimmed_mean}
