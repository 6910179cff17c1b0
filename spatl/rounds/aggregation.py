"""Index-based averaging of sparse updates, and the control variate that follows from it.

Replies are folded in one by one and released: memory does not grow with the number of clients. The result does not
depend on the order they came in, because sums are kept in fixed point, where addition is associative.
"""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Required, TypedDict, Unpack

import numpy as np
import torch
from torch import Tensor

from spatl.channels.kept import Kept
from spatl.channels.layout import EncoderLayout
from spatl.channels.selection import Selection
from spatl.channels.vectors import parts_of
from spatl.errors import UpdateRejected
from spatl.rounds.exact_sum import ExactSum, Terms
from spatl.rounds.few_senders import MOST_OF_A_MEAN, restrain_few_
from spatl.rounds.sent_entries import SentEntries
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


@dataclass(frozen=True, eq=False)
class _After:
    """What comes of a round: the encoder, c, and the squared length of the sum on each channel."""

    encoder: Tensor
    control: Tensor | None
    energies: Tensor


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
        self._found: _After | None = None

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
        self._found = None
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
            for part, kept, terms, gradients in self._terms(update, values, num_examples):
                self._updates.add_(kept, terms, part)
                if gradients is not None:
                    own = slice(part.start, min(part.stop, self._layout.num_parameter_entries))
                    self._gradients.add_(_first(kept, part, own), gradients, own)

    def _terms(
        self, update: Update, compact: Multiples, num_examples: int
    ) -> Iterator[tuple[slice, Kept | None, Terms, Terms | None]]:
        """Some entries at a time: which they are, and what is added of x and of the gradients.

        Of the gradients None where none is trained, or the update was not corrected.
        """
        length, weight = self._layout.num_parameter_entries, num_examples * self._unit
        for part, kept, own in update.selection.value_parts(self._layout):
            values, trained = compact.of_part(own), slice(part.start, min(part.stop, length))
            number = 0
            if trained.start < trained.stop:
                first = _first(kept, part, trained)
                number = trained.stop - trained.start if first is None else first.number
            terms = Terms(values, weight)
            if self._normalizes and number == len(values):
                terms = Terms(values, weight, update.step_weight)
            elif self._normalizes and number:  # a part of which the end is not trained
                exact = terms.exact()
                exact[:number] /= update.step_weight
                terms = Terms(exact)
            gradients = None
            if trained.start < trained.stop and self._is_corrected(update):
                gradients = Terms(values[:number], -1.0, update.step_weight, weight)
            yield part, kept, terms, gradients

    def _totals(self) -> Iterator[tuple[slice, Tensor, Tensor]]:
        """Some entries at a time, and the sums over all updates, and of the gradients of those corrected, float64.

        Of the gradients those of the parameters among the entries; none of them without a control variate.
        """
        waiting = None if self._updates is not None else [self._terms(*each) for each in self._waiting]
        length = 0 if self._control is None else self._layout.num_parameter_entries
        for part in parts_of(self._layout.num_entries):
            own = slice(part.start, max(part.start, min(part.stop, length)))
            if self._updates is not None and self._gradients is not None:
                sums = self._updates.total(part), self._gradients.total(own)
            else:
                sums = _totals_of(map(next, waiting or ()), part, own)
            updates, gradients = (each.div_(self._unit) for each in sums)
            yield part, updates, gradients

    @property
    def _after(self) -> "_After":
        """What comes of the round, from one way through all that was added."""
        if self._found is None:
            self._found = self._summed_up()
        return self._found

    def _summed_up(self) -> "_After":
        encoder, length = self.encoder_before.clone(), self._layout.num_parameter_entries
        control = None if self._control is None else self._control.clone()
        energies = torch.zeros(self._layout.num_channels, dtype=torch.float64)
        factor = self._learning_rate * self._mean_step_weight()
        for part, total, gradients in self._totals():
            own = slice(part.start, max(part.start, min(part.stop, length)))
            trained = own.stop - own.start
            squares = total[:trained].square()
            energies += torch.bincount(self._layout.owner_in(own), weights=squares, minlength=len(energies))
            if control is not None and trained:
                control[own] = _moved_control(self, own, gradients)
            total[:trained] *= factor
            examples, before = _examples_in(self, part), self.encoder_before[part]
            moved = before.to(torch.float64) + total.div_(examples.clamp(min=1))
            encoder[part] = torch.where(examples > 0, moved.to(torch.float32), before)
        restrain_few_(encoder, self.encoder_before, self._senders, self.num_updates, self._layout, most=MOST_OF_A_MEAN)
        return _After(self._without_negative(encoder), control, energies)

    def encoder(self) -> Tensor:
        """The encoder x after the round, float32 [N]: entries nobody sent keep their bits. Nobody changes it.

        What few sent is restrained (`spatl.rounds.few_senders`). Statistics are plain weighted means: a learning rate
        above 1 would extrapolate a variance below 0. What rounding takes below 0 all the same, is halved instead.
        """
        return self._after.encoder

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
        return None if self._control is None else self._after.control

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
    """int64: for each entry of a part, the examples of the clients that sent it, or of those with control.

    One number where it is the same for all channels.
    """
    own = aggregator._by_entry
    if own is not None:
        return (own.corrected if corrected else own.examples)[part]
    examples = aggregator._corrected if corrected else aggregator._examples
    if len(examples) and bool((examples == examples[0]).all()):
        return examples[0]
    return aggregator._layout.spread(examples, part)


def _moved_control(aggregator: Aggregator, part: slice, total: Tensor) -> Tensor:
    """Some parameters' c after the round, float32, from the sum of their gradients, float64, which is used up."""
    assert aggregator._control is not None
    assert aggregator._held_control is not None
    examples, control = _examples_in(aggregator, part, corrected=True), aggregator._control[part]
    before, held = control.to(torch.float64), aggregator._held_control[part].to(torch.float64)
    change = total.sub_(held.mul_(examples)).div_(aggregator._total_examples)
    moved = before.add_(change.mul_(aggregator._damping)).to(torch.float32)
    return torch.where(examples > 0, moved, control)


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
        for part, total, _ in self._totals():
            noise = torch.from_numpy(self._noise.standard_normal(part.stop - part.start))
            moved = total + self._noise_multiplier * self._clip * noise
            encoder[part] = (
                self.encoder_before[part].double() + self._learning_rate / self._num_expected * moved
            ).float()
        return self._without_negative(encoder)


def channel_energies(aggregator: Aggregator) -> Tensor:
    """Return the squared length, on the parameters of each channel, of the sum of all updates times examples.

    Args:
        aggregator: The round's, with all updates in it.

    Returns:
        float64 [C].
    """
    return aggregator._after.energies


def channels_moved(aggregator: Aggregator) -> Tensor:
    """Return the channels that a round moves, bool [C]: those that a client sent, under privacy all of them."""
    if isinstance(aggregator, PrivateAggregator):  # who chose what is covered by noise on the others
        return torch.ones_like(aggregator._examples, dtype=torch.bool)
    return aggregator._examples > 0


def _first(kept: Kept | None, part: slice, own: slice) -> Kept | None:
    """Which entries of the beginning of a part travel, given those of all of it."""
    return kept if kept is None or own == part else kept.before(own.stop - own.start)


def _totals_of(
    terms: Iterable[tuple[slice, Kept | None, Terms, Terms | None]], part: slice, own: slice
) -> tuple[Tensor, Tensor]:
    """The sums of a part, float64, and of the gradients of its beginning, from what each update adds to them."""
    updates, gradients = ExactSum(part.stop - part.start), ExactSum(own.stop - own.start)
    for _, kept, added, of_gradients in terms:
        updates.add_(kept, added)
        if of_gradients is not None:
            gradients.add_(_first(kept, part, own), of_gradients)
    return updates.total(), gradients.total()


WAITING_BYTES = 8  # for each entry: two updates that send everything
