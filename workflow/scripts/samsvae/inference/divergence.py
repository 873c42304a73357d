"""Errors of diverged trainings (non-finite loss), with their likely cause."""

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from samsvae.inference.cells import Cells
from samsvae.inference.objective import RECONSTRUCTION
from samsvae.inference.step import Training
from samsvae.runtime.errors import DivergenceError

STEPS_SHOWN = 20


def check_finite(
    terms: np.ndarray,
    names: Sequence[str],
    first_step: int,
    training: Training,
    batch_of: Callable[[int], str],
) -> None:
    """Raise an error at the first step with a non-finite bound.

    Parameters
    ----------
    terms
        Terms of the bound, steps x terms, nats per cell.
    names
        Names of the terms.
    first_step
        Number of the first of these steps, from 1.
    training
        Training configuration.
    batch_of
        Describes the batch of a step.

    Raises
    ------
    DivergenceError
        Naming the step, its batch, the terms, the likely cause and the settings to change.
    """
    finite = np.isfinite(terms)
    if finite.all():
        return
    row = int(np.argmin(finite.all(axis=1)))
    broken = [name for name, good in zip(names, finite[row], strict=True) if not good]
    step = first_step + row
    raise DivergenceError(
        f"Training diverged at step {step}: {', '.join(broken)} is no longer a finite number. "
        f"Batch: {batch_of(step)}. " + _likely_cause(terms[:row], names, broken, step, training)
    )


def check_validated(terms: Mapping[str, float], step: int, training: Training) -> None:
    """Raise an error if the bound of the validation cells is not finite.

    Parameters
    ----------
    terms
        The bound and its terms, nats per cell.
    step
        Number of steps so far.
    training
        Training configuration.

    Raises
    ------
    DivergenceError
        Naming the step, the terms, the likely cause and the settings to change.
    """
    broken = [name for name, value in terms.items() if not math.isfinite(value)]
    if broken:
        raise DivergenceError(
            f"Training diverged after step {step}: {', '.join(broken)} of the validation cells is "
            "not finite, but that of the training cells is. Either the last update was too large, "
            "or a validation cell has extreme counts. " + _remedy(training)
        )


def describe_batch(cells: Cells, size: int, seed: int, step: int) -> str:
    """Describe the batch of a step and its largest count.

    Parameters
    ----------
    cells
        The training cells.
    size
        Cells per batch.
    seed
        Seed of the order of the cells.
    step
        Number of the step, from 1.

    Returns
    -------
    str
        Cells and genes are counted from 0, in the order of the training cells and of the screen.
    """
    batches = cells.random_batches(size, seed)
    positions = next(batches)
    for _ in range(step - 1):
        positions = next(batches)
    counts = cells.counts[positions]
    cell, gene = divmod(int(counts.argmax()), counts.shape[1])
    each_epoch = len(cells) // batches.size
    epoch, batch = divmod(step - 1, each_epoch)
    return (
        f"number {batch + 1} of {each_epoch} in epoch {epoch + 1}, {len(positions)} cells, "
        f"largest count {counts[cell, gene].item():g} (training cell {int(positions[cell])}, "
        f"gene {gene})"
    )


def _likely_cause(
    before: np.ndarray, names: Sequence[str], broken: Sequence[str], step: int, training: Training
) -> str:
    if step == 1:
        return (
            "This is the first step, so the cause is in the data or the model's settings: look "
            "for genes or cells with extreme counts."
        )
    recent = before[-STEPS_SHOWN:]
    signs = np.where(np.array(names) == RECONSTRUCTION, 1, -1)
    if len(recent) and recent[-1] @ signs < recent[0] @ signs:
        cause = (
            f"In the {len(recent)} steps before, the ELBO per cell fell from "
            f"{recent[0] @ signs:.4g} to {recent[-1] @ signs:.4g}: the updates are too large."
        )
    elif broken == [RECONSTRUCTION]:
        cause = "The decoder's output overflowed while the latent terms were finite."
    else:
        cause = "An update overflowed the parameters."
    return f"{cause} {_remedy(training)}"


def _remedy(training: Training) -> str:
    clip = training.gradient_clip
    return (
        f"Lower training.learning_rate (now {training.learning_rate:g}) or training.gradient_clip "
        f"(now {'null' if clip is None else f'{clip:g}'}), or raise training.warm_up_steps."
    )
