"""Rate and time left of a loop, as one readable line."""

import time
from collections.abc import Mapping


class Progress:
    """Measures a loop from its second step on, so that compilation does not count."""

    def __init__(self, *, first_step: int, last_step: int) -> None:
        self._last_step = last_step
        self._mark = (first_step, time.monotonic())
        self._warm = False

    def steps_per_second(self, step: int) -> float:
        """Returns the rate since the first warm step; 0.0 while nothing was measured."""
        now = time.monotonic()
        if not self._warm:
            self._mark, self._warm = (step, now), True
            return 0.0
        done, since = step - self._mark[0], now - self._mark[1]
        return done / since if done and since else 0.0

    def line(self, step: int, values: Mapping[str, float]) -> str:
        """Returns "step 20/300  loss 1.2345  12.3 steps/s  0:23 left"."""
        rate = self.steps_per_second(step)
        shown = "  ".join(f"{name} {value:.4f}" for name, value in values.items())
        text = f"step {step}/{self._last_step}  {shown}"
        if rate:
            text += f"  {rate:.2f} steps/s  {clock((self._last_step - step) / rate)} left"
        return text


def clock(seconds: float) -> str:
    """Returns a time as "1:02:03" or "2:03"."""
    whole = round(seconds)
    return f"{whole // 3600}:{whole // 60 % 60:02d}:{whole % 60:02d}".removeprefix("0:")
