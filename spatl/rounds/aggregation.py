"""Index-based averaging of sparse updates, and the control variate that follows from it.

Replies are folded in one by one and released: memory does not grow with the number of clients. The result does not
depend on the order they came in, because sums are kept in fixed point, where addition is associative.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Required, TypedDict, Unpack

import numpy as np
import torch
from torch import Tensor

from spatl.channels.layout import EncoderLayout
from spatl.channels.selection import Selection
from spatl.channels.vectors import parts_of
from spatl.errors import UpdateRejected
from spatl.rounds.exact_sum import ExactSum
from spatl.rounds.few_senders import MOST_OF_A_MEAN, restrain_few_
from spatl.wire.multiples import Multiples
from spatl.wire.update import Update

_LARGEST_TERM = 2.0**42

_BITS_OF_EXAMPLES = 20


class AverageSettings(TypedDict, total=False):
    """Keywords of every `Aggregator`, with its defaults."""

    layout: Required[EncoderLayout]
    encoder: Required[Tensor]
    control: Required[Tensor | None]
    held_control: Tensor | None
    total_examples: Required[int]
    learning_rate: float
    damping: float
    normalizes: bool
    by_entry: bool


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
        by_entry: Whether clients send parts of a network, so that who sent an entry is counted for each of them.

    Attributes:
        encoder_before: float32 [N], x before the round.
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
        by_entry: bool = False,
    ) -> None:
        self._layout = layout
        self.encoder_before = encoder
        self._control = control
        self._held_control = control if held_control is None else held_control
        self._total_examples = total_examples
        self._learning_rate = learning_rate
        self._damping = damping
        self._normalizes = normalizes
        # A power of two, so that counts are scaled without rounding: of however many millions a client holds, what its
        # values may be is the same.
        self._unit = 2.0 ** -max(0, total_examples.bit_length() - _BITS_OF_EXAMPLES)
        self._waiting: list[tuple[Update, Multiples, int]] = []  # not summed yet: a few take less than their sums
        self._updates: ExactSum | None = None
        self._gradients: ExactSum | None = None
        self._examples = torch.zeros(layout.num_channels, dtype=torch.int64)  # over the clients that sent a channel
        self._corrected, self._senders = torch.zeros(2, layout.num_channels, dtype=torch.int64)  # of those with control
        self._step_weights: list[tuple[int, float]] = []
        self._by_entry = SentEntries(layout) if by_entry else None

    @property
    def num_updates(self) -> int:
        """Number of updates that were folded in."""
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
        trained = update.selection.num_entries(self._layout, self._layout.num_parameter_entries)
        largest = _largest_term(update, trained, num_examples * self._unit, normalizes=self._normalizes)
        if not largest < _LARGEST_TERM:
            raise UpdateRejected(f"a value times {num_examples} examples exceeds {_LARGEST_TERM / self._unit:.3g}")
        kept_as = Multiples.of(update.values, update.compact)  # of the bytes that came, nothing else is kept
        self._waiting.append((replace(update, values=torch.zeros(0), compact=lambda: None), kept_as, num_examples))
        kept = sum(values.num_bytes for _, values, _ in self._waiting)
        if self._updates is not None or kept > WAITING_BYTES * self._layout.num_entries:
            self._fold_()
        _count_(self, update.selection, num_examples, corrected=self._is_corrected(update))
        self._step_weights.append((num_examples, update.step_weight))

    def _is_corrected(self, update: Update) -> bool:
        return self._control is not None and update.corrected

    def _fold_(self) -> None:
        """Add up what waits, over the whole vector."""
        if self._updates is None or self._gradients is None:
            controlled = self._layout.num_parameter_entries if self._control is not None else 0
            self._updates, self._gradients = ExactSum(self._layout.num_entries), ExactSum(controlled)
        while self._waiting:
            update, values, num_examples = self._waiting.pop(0)
            places = update.selection.place_parts(self._layout)
            for part, _, terms, gradients in self._terms(update, values.of_part, num_examples):
                _, at, _ = next(places)
                self._updates.add_(slice(None) if at is None else at, terms, part)
                if self._is_corrected(update) and len(gradients):
                    own = slice(part.start, min(part.stop, self._layout.num_parameter_entries))
                    self._gradients.add_(slice(None) if at is None else at[: len(gradients)], gradients, own)

    def _terms(
        self, update: Update, values_of: Callable[[slice], Tensor], num_examples: int
    ) -> Iterator[tuple[slice, Tensor | None, Tensor, Tensor]]:
        """Some entries at a time: which they are, and what is added, in float64, of x and of the gradients."""
        length, weight = self._layout.num_parameter_entries, num_examples * self._unit
        for part, kept, own in update.selection.value_parts(self._layout):
            values = values_of(own).to(torch.float64)
            number = len(values)
            if part.stop > length:
                before = max(0, length - part.start)
                number = before if kept is None else int(kept[:before].sum())
            terms = values * weight
            if self._normalizes:
                terms[:number] /= update.step_weight
            yield part, kept, terms, -values[:number] / update.step_weight * weight

    def _totals(self) -> Iterator[tuple[slice, Tensor]]:
        """Some entries at a time, and the sums over all updates, float64."""
        if self._updates is not None:
            for part in parts_of(self._layout.num_entries):
                yield part, self._updates.total(part) / self._unit
            return
        for part, summed in self._together():
            total = ExactSum(part.stop - part.start)
            for _, kept, terms, _ in summed:
                total.add_(positions(kept), terms)
            yield part, total.total() / self._unit

    def _gradient_totals(self) -> Iterator[tuple[slice, Tensor]]:
        """Some parameters at a time, and the sums of the gradients over all corrected updates, float64."""
        length = self._layout.num_parameter_entries
        if self._gradients is not None:
            for part in parts_of(length):
                yield part, self._gradients.total(part) / self._unit
            return
        for part, summed in self._together():
            own = slice(part.start, min(part.stop, length))
            if own.start < own.stop:
                total = ExactSum(own.stop - own.start)
                for update, kept, _, gradients in summed:
                    if self._is_corrected(update):
                        total.add_(positions(kept, own), gradients)
                yield own, total.total() / self._unit

    def _together(self) -> Iterator[tuple[slice, list[tuple[Update, Tensor | None, Tensor, Tensor]]]]:
        """Some entries at a time, of all updates that wait."""
        all_terms = [self._terms(update, values.of_part, number) for update, values, number in self._waiting]
        for part in parts_of(self._layout.num_entries):
            found = [(update, *next(terms)[1:]) for (update, *_), terms in zip(self._waiting, all_terms, strict=True)]
            yield part, found

    def encoder(self) -> Tensor:
        """The encoder x after the round, float32 [N]: entries nobody sent keep their bits.

        What few sent is restrained (`spatl.rounds.few_senders`). Statistics are plain weighted means: a learning rate
        above 1 would extrapolate a variance below 0. What rounding takes below 0 all the same, is halved instead.
        """
        encoder = self.encoder_before.clone()
        factor = self._learning_rate * self._mean_step_weight()
        for part, total in self._totals():
            examples = _examples_in(self, part)
            scale = torch.ones(len(examples), dtype=torch.float64)
            scale[: max(0, self._layout.num_parameter_entries - part.start)] = factor
            before = self.encoder_before[part]
            moved = before.to(torch.float64) + scale * total / examples.clamp(min=1)
            encoder[part] = torch.where(examples > 0, moved.to(torch.float32), before)
        restrain_few_(encoder, self.encoder_before, self._senders, self.num_updates, self._layout, most=MOST_OF_A_MEAN)
        return self._without_negative(encoder)

    def _without_negative(self, encoder: Tensor) -> Tensor:
        """The encoder, in place, with half of what a variance was where it would be below 0: it goes on from there."""
        for part in self._layout.variances:
            encoder[part] = torch.where(encoder[part] < 0, self.encoder_before[part] / 2, encoder[part])
        return encoder

    def _mean_step_weight(self) -> float:
        """Factor of normalised updates: sum_i p_i a_i over the participants; 1 without normalisation."""
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
        for part, total in self._gradient_totals():
            examples = _examples_in(self, part, corrected=True)
            before, held = (each[part].to(torch.float64) for each in (self._control, self._held_control))
            change = (total - held * examples) / self._total_examples
            moved = (before + self._damping * change).to(torch.float32)
            control[part] = torch.where(examples > 0, moved, self._control[part])
        return control

    def control_share(self) -> float:
        """The share of all clients' examples that stood behind the change of c, in the mean over its entries."""
        length = self._layout.num_parameter_entries
        return min(1.0, _num_corrected(self) / length / self._total_examples) if length else 0.0


def _largest_term(update: Update, number: int, weight: float, *, normalizes: bool) -> float:
    """The largest magnitude of what is added for an update, of whose values so many are trained; NaN where one is.

    Rounding keeps the order of numbers: the largest value has the largest term.
    """
    largest = [0.0]
    for own, is_trained in ((update.values[:number], True), (update.values[number:], False)):
        if len(own):
            most = max(map(abs, torch.stack(torch.aminmax(own)).tolist()))  # both are NaN where a value is
            largest.append(most * weight / (update.step_weight if is_trained and normalizes else 1.0))
            largest += [most / update.step_weight * weight] if is_trained else []
    return math.nan if any(map(math.isnan, largest)) else max(largest)


def _count_(aggregator: Aggregator, selection: Selection, num_examples: int, *, corrected: bool) -> None:
    """Count a client in among the senders of what it sent."""
    if corrected:
        aggregator._corrected[selection.mask] += num_examples
    aggregator._examples[selection.mask] += num_examples
    aggregator._senders += selection.mask
    if aggregator._by_entry is not None:
        aggregator._by_entry.add(selection, num_examples, corrected=corrected)


def _num_corrected(aggregator: Aggregator) -> int:
    """Sum over all entries of the examples of the clients with control that sent it."""
    if aggregator._by_entry is not None:
        return int(aggregator._by_entry.corrected.sum())
    return int((aggregator._corrected * aggregator._layout.parameter_sizes).sum())


def _examples_in(aggregator: Aggregator, part: slice, *, corrected: bool = False) -> Tensor:
    """int64: for each entry of a part, the examples of the clients that sent it, or of those with control."""
    own = aggregator._by_entry
    if own is not None:
        return (own.corrected if corrected else own.examples)[part]
    return (aggregator._corrected if corrected else aggregator._examples)[aggregator._layout.owner_in(part)]


class SentEntries:
    """Examples that stand behind each entry, of clients that each send a part of the network.

    A channel that two of them sent may have entries that only one did.

    Args:
        layout: The shared encoder.

    Attributes:
        examples: int64 [N], training examples of the clients that sent an entry.
        corrected: int64 [P], likewise of those whose gradients were corrected.
    """

    def __init__(self, layout: EncoderLayout) -> None:
        self._layout = layout
        self.examples = torch.zeros(layout.num_entries, dtype=torch.int64)
        self.corrected = torch.zeros(layout.num_parameter_entries, dtype=torch.int64)

    def add(self, selection: Selection, num_examples: int, *, corrected: bool) -> None:
        """Count a client in."""
        for part, kept in selection.parts(self._layout):
            self.examples[part][positions(kept)] += num_examples
            own = slice(part.start, max(part.start, min(part.stop, self._layout.num_parameter_entries)))
            if corrected and own.start < own.stop:
                self.corrected[own][positions(kept, own)] += num_examples


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
        settings: Of `Aggregator`, without a control variate.
    """

    def __init__(
        self,
        *,
        clip: float,
        noise_multiplier: float,
        num_expected: int,
        noise: np.random.Generator,
        **settings: Unpack[AverageSettings],
    ) -> None:
        super().__init__(**settings)
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
        encoder = torch.empty_like(self.encoder_before)
        for part, total in self._totals():
            noise = torch.from_numpy(self._noise.standard_normal(part.stop - part.start))
            moved = total + self._noise_multiplier * self._clip * noise
            encoder[part] = (
                self.encoder_before[part].double() + self._learning_rate / self._num_expected * moved
            ).float()
        return self._without_negative(encoder)


def channel_energies(aggregator: Aggregator, layout: EncoderLayout) -> Tensor:
    """Return the squared length, on the parameters of each channel, of the sum of all updates times examples.

    Args:
        aggregator: The round's, with all updates in it.
        layout: The shared encoder.

    Returns:
        float64 [C].
    """
    energies = torch.zeros(layout.num_channels, dtype=torch.float64)
    for part, total in aggregator._totals():
        own = slice(part.start, max(part.start, min(part.stop, layout.num_parameter_entries)))
        squares = total[: own.stop - own.start].square()
        energies += torch.bincount(layout.owner_in(own), weights=squares, minlength=layout.num_channels)
    return energies


def channels_moved(aggregator: Aggregator) -> Tensor:
    """Return the channels that a round moves, bool [C]: those that a client sent, under privacy all of them."""
    if isinstance(aggregator, PrivateAggregator):  # who chose what is covered by noise on the others
        return torch.ones_like(aggregator._examples, dtype=torch.bool)
    return aggregator._examples > 0


def positions(kept: Tensor | None, own: slice | None = None) -> Tensor | slice:
    """Which entries of a part travel, int64, or of the beginning of it that is as long as a slice."""
    if kept is None:
        return slice(None)
    return (kept if own is None else kept[: own.stop - own.start]).nonzero().squeeze(1)


WAITING_BYTES = 8  # for each entry: two updates that send everything
