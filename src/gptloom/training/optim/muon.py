"""Muon: orthogonalised momentum for matrices (Jordan et al. 2024)."""

import torch
from jaxtyping import Float
from torch import Tensor

from gptloom.config.run import TrainConfig
from gptloom.distributed import ProcessGroup
from gptloom.fast.flat import Flat, FlatOptimizer, Named

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Coefficients (a, b, c) of the quintic that brings every singular value near 1, as published with Muon.

The iteration converges fast near 0, and is not exact at 1.
"""

ITERATIONS = 5


class Muon(FlatOptimizer):
    """Muon with Nesterov momentum and decoupled weight decay, for matrices.

    Matrices of the same shape share a buffer, so that their Newton-Schulz iterations are a few batched products. These
    are in float32, which on a CPU is faster than the bfloat16 of PyTorch's Muon. With several ranks, each rank
    orthogonalises a share of the matrices.

    Args:
        named: names and matrices (r, c).
        config: `matrix_learning_rate`, `momentum` and `weight_decay` are used.
        group: the process group.
    """

    kinds = ("momentum",)

    def __init__(self, named: Named, config: TrainConfig, group: ProcessGroup) -> None:
        """Move every matrix and its gradient into the buffers."""
        shapes = dict.fromkeys(p.shape for _, p in named)
        settings = {
            "lr": config.matrix_learning_rate,
            "weight_decay": config.weight_decay,
            "momentum": config.momentum,
        }
        flats = [Flat([(name, p) for name, p in named if p.shape == shape]) for shape in shapes]
        super().__init__(flats, [settings] * len(flats))
        self.group, self.shapes = group, [(-1, *shape) for shape in shapes]

    def empty_memory(self) -> list[dict[str, Tensor]]:
        """Return zero momenta."""
        return [{"momentum": torch.zeros_like(flat.grad)} for flat in self.flats]

    @torch.no_grad()
    def step(self) -> None:
        """Update by the orthogonalised momenta, times sqrt(max(1, r / c))."""
        for flat, shape, memory, group in zip(self.flats, self.shapes, self.memory, self.param_groups, strict=True):
            flat.gather()
            rate, share = group["lr"], group["momentum"]
            momentum = memory["momentum"].lerp_(flat.grad, 1.0 - share)
            ahead = flat.grad.lerp(momentum, share).view(shape)
            update = self._orthogonal(ahead)
            if group["weight_decay"]:
                flat.whole.mul_(1.0 - rate * group["weight_decay"])
            flat.whole.add_(update.flatten(), alpha=-rate * max(1.0, shape[1] / shape[2]) ** 0.5)

    def _orthogonal(self, stack: Float[Tensor, "n r c"]) -> Float[Tensor, "n r c"]:
        """Orthogonalise this rank's share of a stack, and gather the shares of all ranks."""
        if self.group.world == 1:
            return orthogonalise(stack)
        mine = torch.zeros_like(stack)
        share = slice(self.group.rank, None, self.group.world)
        if len(stack[share]):
            mine[share] = orthogonalise(stack[share])
        self.group.all_reduce(mine)  # the other ranks' shares are 0 here
        return mine


def orthogonalise(stack: Float[Tensor, "n r c"]) -> Float[Tensor, "n r c"]:
    """Bring the singular values of each matrix to about 1 (0.7 to 1.2).

    Uses Newton-Schulz iterations x <- (a + b x x^T + c (x x^T)^2) x.
    """
    tall = stack.shape[1] > stack.shape[2]
    x = stack.transpose(1, 2) if tall else stack  # x x^T then has the smaller of the two possible sizes
    x = x / (torch.linalg.matrix_norm(x, keepdim=True) + 1e-7)
    x = _by_products(x) if x.shape[2] >= 2 * x.shape[1] else _by_matrices(x)
    return x.transpose(1, 2) if tall else x


def _by_matrices(x: Float[Tensor, "n r c"]) -> Float[Tensor, "n r c"]:
    """Iterate on x."""
    a, b, c = COEFFICIENTS
    for _ in range(ITERATIONS):
        gram = x @ x.transpose(1, 2)
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x


def _by_products(x: Float[Tensor, "n r c"]) -> Float[Tensor, "n r c"]:
    """Iterate on the smaller matrix g = x x^T.

    An iteration multiplies x by p = a + b g + c g^2, so g becomes p g p. The product of all p is applied to x at the
    end.
    """
    a, b, c = COEFFICIENTS
    gram = x @ x.transpose(1, 2)
    collected = torch.eye(x.shape[1], dtype=x.dtype, device=x.device).expand_as(gram)
    for iteration in range(ITERATIONS):
        factor = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        factor.diagonal(dim1=1, dim2=2).add_(a)
        collected = factor @ collected if iteration else factor
        if iteration + 1 < ITERATIONS:
            gram = factor @ gram @ factor
    return collected @ x
