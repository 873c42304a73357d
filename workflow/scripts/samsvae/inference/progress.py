"""Says how far a training is."""

import logging

from samsvae.pace import Pace

logger = logging.getLogger(__name__)


class Progress:
    """Says how far training is, how fast, and how long it will take.

    Parameters
    ----------
    max_steps
        Steps of the whole training.
    first_step
        Steps that were done before.
    """

    def __init__(self, max_steps: int, first_step: int = 0) -> None:
        self.max_steps = max_steps
        self.pace = Pace(max_steps, first_step)

    def report(self, step: int, train_elbo: float, validation_elbo: float) -> None:
        """Log one line; the bounds are in nats per cell."""
        speed, left = self.pace.at(step)
        logger.info(
            "step %d/%d (%d %%)  %.1f steps/s  %s left  ELBO per cell: train %.2f, validation %.2f",
            step,
            self.max_steps,
            round(100 * step / self.max_steps),
            speed,
            left,
            train_elbo,
            validation_elbo,
        )
