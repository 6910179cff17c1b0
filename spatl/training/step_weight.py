"""Accumulated step weight (a_i): what the gradients of a local run add up to in its displacement."""


class StepWeight:
    """Accumulates a = the sum of the coefficients with which each step's gradient enters the final displacement.

    The optimizer is linear in the gradients, so `a` is how far one coordinate that starts at zero moves under a
    gradient of minus one: the recurrence of SGD with momentum, Nesterov momentum and weight decay is followed step by
    step, at each step's own learning rate (FedNova, Wang et al. 2020, section 3.1, generalised to schedules).
    """

    def __init__(self, *, momentum: float = 0.0, weight_decay: float = 0.0, nesterov: bool = False) -> None:
        self._momentum = momentum
        self._weight_decay = weight_decay
        self._nesterov = nesterov
        self._velocity: float | None = None
        self.value = 0.0

    def step(self, learning_rate: float) -> None:
        """Follow one optimizer step."""
        gradient = 1.0 - self._weight_decay * self.value
        velocity = gradient if self._velocity is None else self._momentum * self._velocity + gradient
        self._velocity = velocity
        self.value += learning_rate * (gradient + self._momentum * velocity if self._nesterov else velocity)
