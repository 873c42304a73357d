"""The axes of latent space along which effects are sparsest."""

import torch
from torch import Tensor

SMOOTHNESS = 0.5  # of the rounding of |e| at 0, in root mean squares of the effects
MOST_ITERATIONS = 1000
TOLERANCE = 1e-8


def sparsest_rotation(effects: Tensor) -> Tensor:
    """Find the rotation after which effects are sparsest.

    Minimises sum_tk sqrt((E R)_tk^2 + s^2), a rounded sum of absolute values, over orthogonal R.
    Each iteration goes to the minimum of a quadratic function that lies above and touches, which
    is a Procrustes problem, so that the sum never rises.

    Parameters
    ----------
    effects
        E, perturbations x latent dimensions.

    Returns
    -------
    Tensor
        R, K x K; the identity if there is no effect at all.

    Examples
    --------
    >>> effects = torch.tensor([[4.0, 3.0], [-0.6, 0.8]])
    >>> (effects @ sparsest_rotation(effects)).abs().round().tolist()
    [[5.0, 0.0], [0.0, 1.0]]
    """
    E = effects.detach().double()
    rounding = SMOOTHNESS * E.square().mean().sqrt()
    rotation = torch.eye(E.shape[1], dtype=E.dtype, device=E.device)
    if not rounding > 0:
        return rotation.to(effects.dtype)
    previous = float("inf")
    for _ in range(MOST_ITERATIONS):
        turned = E @ rotation
        size = torch.sqrt(turned.square() + rounding**2)
        total = float(size.sum())
        if previous - total <= TOLERANCE * total:
            break
        previous = total
        left, _, right = torch.linalg.svd(E.T @ (turned - turned * (rounding / size)))
        rotation = left @ right
    return rotation.to(effects.dtype)
