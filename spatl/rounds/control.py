"""Control variates of a shared encoder whose clients send only some channels (SCAFFOLD, Karimireddy et al. 2020).

A client adds c - c_i to the encoder's gradients (eq. 3) and re-estimates c_i from what it sent (option II). The
estimate divides the update by what its steps really added up to, which is K times the learning rate only for plain SGD.
"""

from dataclasses import replace

import torch
from torch import Tensor

from spatl.channels.fused import refresh_
from spatl.channels.kept import put_, taken
from spatl.channels.layout import EncoderLayout
from spatl.channels.vectors import parts_of
from spatl.config.experiment import ExperimentConfig
from spatl.sealed_files import StoredTensor, some_of
from spatl.wire.download import DerivedControl
from spatl.wire.update import Update


def fading(half_life: float | None, num_rounds: int) -> float:
    """The factor by which control variates fade in `num_rounds` server rounds; 1 for a `half_life` of None.

    c and every c_i fade alike, wherever they are, so that c stays the weighted sum of the c_i while what nobody
    refreshes is forgotten. (Correcting fresh channels only would do so too, but then option II no longer returns the
    gradient on the others, and their c_i grow without bound.)
    """
    return 1.0 if half_life is None else 0.5 ** (num_rounds / half_life)


def refresh_control(
    client_control: Tensor, control: Tensor, update: Update, layout: EncoderLayout, *, damping: float
) -> Tensor:
    """Return c_i after a round: c_i + rho * (-D_i / a_i - c) on the entries that were sent, c_i elsewhere.

    Args:
        client_control: float32 [P], c_i before the round.
        control: float32 [P], c as the client holds it.
        update: The update as the server decodes it.
        layout: The encoder.
        damping: rho in (0, 1]; 1 is SCAFFOLD's option II.

    Returns:
        float32 [P], a new tensor.
    """
    refreshed = client_control.clone()
    for part, kept, values in update.selection.value_parts(layout, layout.num_parameter_entries):
        own, common, sent = refreshed[part], control[part], update.values[values]
        if refresh_(own, common, kept, sent, step_weight=update.step_weight, damping=damping):
            continue
        before, held = taken(own, kept), taken(common, kept)
        estimate = -sent.to(torch.float64) / update.step_weight
        moved = (before.to(torch.float64) + damping * (estimate - held.to(torch.float64))).to(torch.float32)
        put_(own, kept, moved)  # a view
    return refreshed


def followed_gradient(own: Tensor, update: Update, layout: EncoderLayout, *, alpha: float) -> Tensor:
    """Return g_i after a round of FedDyn: g_i - alpha D_i on the entries that were sent (Acar et al. 2021, alg. 1).

    Where local training ends at a minimum, that is the gradient of the client's loss there: its first-order condition
    is grad L_i(y_i) - g_i + alpha (y_i - x) = 0, whatever optimizer got there. In form it is `refresh_control` with a c
    of 0, undamped, and 1 / alpha for a_i.

    Args:
        own: float32 [P], g_i before the round.
        update: The update as the server decodes it.
        layout: The encoder.
        alpha: As of `training.dynamic_alpha`.

    Returns:
        float32 [P], a new tensor.
    """
    nothing = torch.zeros(1).expand(len(own))  # in no memory
    return refresh_control(own, nothing, replace(update, step_weight=1 / alpha), layout, damping=1.0)


def half_life_of(config: ExperimentConfig) -> float | None:
    """Rounds in which what corrects gradients fades to a half; None for never, as FedDyn's linear terms."""
    return config.control.half_life if config.row.controls else None


def followed_control(
    control: Tensor | StoredTensor,
    change: Tensor,
    derived: DerivedControl,
    *,
    fading: float,
    into: Tensor | None = None,
) -> Tensor:
    """Return c after a round, float32 [P], from the change of x_hat that the round made.

    The server's c moves by rho times the weighted mean of (-D_i / a_i - c) over the clients (`Aggregator.control`), and
    x by the mean of D_i: so c follows x, but for what each client left out. Nothing has to be sent for it but two
    numbers.

    Args:
        control: float32 [P], c before the round; it may lie in a file.
        change: float32 [P], x_hat after the round less x_hat before it.
        derived: How far c moves, and by what steps add up to.
        fading: The factor by which control variates fade in a round.
        into: Where to write the result, which may be `change` or `control` itself; a new tensor if not given.
    """
    followed = torch.empty(control.shape) if into is None else into
    for part in parts_of(len(followed)):
        before = some_of(control, part)
        if derived.step_weight == 0:
            torch.mul(before, fading, out=followed[part])
            continue
        held, estimate = before.to(torch.float64), change[part].to(torch.float64).div_(-derived.step_weight)
        followed[part] = held.add_(estimate.sub_(held).mul_(derived.damping)).mul_(fading)
    return followed
