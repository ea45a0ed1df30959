"""A measured quotient that follows what is observed; pure, not guarded against threads."""

from __future__ import annotations

# Of a measurement's weight, what is left after each further one: about fifty count.
_MEMORY = 0.98


class Ratio:
    """A quotient of two quantities over the recent past, newer observations counting more."""

    def __init__(self, first_guess: float, weight: float) -> None:
        """Args: weight: how much of the denominator the first guess stands for."""
        self._over, self._under = first_guess * weight, weight

    def observe(self, over: float, under: float) -> None:
        """Count one more measurement of both quantities."""
        self._over = self._over * _MEMORY + over
        self._under = self._under * _MEMORY + under

    @property
    def value(self) -> float:
        return self._over / self._under
