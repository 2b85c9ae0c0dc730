"""The Muon update for weight matrices: momentum whose directions all have the same strength.

It exists because it learns the pages in a third of the time that Adam takes. The momentum is
made nearly orthogonal by five steps of the Newton-Schulz iteration with the quintic
coefficients published with the method (2024). It is for matrices only: embeddings and norms
stay with Adam. Float32 throughout, because bfloat16 products are slow on many processors.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch

_A, _B, _C = 3.4445, -4.7750, 2.0315
_STEPS = 5


class Muon:
    """An optimizer over matrices; the caller sets ``learning_rate`` before each step."""

    def __init__(self, matrices: Iterable[torch.Tensor], *, momentum: float = 0.95) -> None:
        self._matrices = list(matrices)
        if any(matrix.ndim != 2 for matrix in self._matrices):
            raise ValueError("Muon takes matrices only")
        self._momentum = momentum
        self._buffers = [torch.zeros_like(matrix) for matrix in self._matrices]

    def step(self, learning_rate: float) -> None:
        """One update from the gradients that the matrices hold; Nesterov momentum."""
        with torch.no_grad():
            for matrix, buffer in zip(self._matrices, self._buffers, strict=True):
                if matrix.grad is None:
                    continue
                buffer.mul_(self._momentum).add_(matrix.grad)
                update = orthogonalised(matrix.grad + self._momentum * buffer)
                scale = max(1.0, matrix.shape[0] / matrix.shape[1]) ** 0.5
                matrix.add_(update, alpha=-learning_rate * scale)


def orthogonalised(matrix: torch.Tensor) -> torch.Tensor:
    """``matrix`` with all its singular values brought close to 1 (about 0.7 to 1.2)."""
    tall = matrix.shape[0] > matrix.shape[1]
    x = matrix.T if tall else matrix
    x = x / (x.norm() + 1e-7)
    for _ in range(_STEPS):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=_B, alpha=_C), x, beta=_A)
    return x.T if tall else x
