"""Optimisers: Muon for the matrices inside the network, AdamW for everything else.

torch ships `torch.optim.Muon`, but it orthogonalises in bfloat16, which is a hundred times slower than float32 on CPUs
without bfloat16 units; this one multiplies as the model that it trains does.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

_NS = (3.4445, -4.7750, 2.0315)


def orthogonalise(gradient: Tensor, steps: int = 5, dtype: torch.dtype = torch.float32) -> Tensor:
    """Nearest semi-orthogonal matrix of a [m, n] gradient by the quintic Newton-Schulz iteration (Jordan et al., 2024)."""
    x = gradient.to(torch.bfloat16 if gradient.is_cuda else dtype)
    tall = x.shape[0] > x.shape[1]
    x = x.T if tall else x
    x = x / (x.norm() + 1e-7)
    a, b, c = _NS
    for _ in range(steps):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return (x.T if tall else x).to(gradient.dtype)


class Muon(torch.optim.Optimizer):
    """Momentum, orthogonalised. For weights with two or more axes; convolutions are seen as [out, in*kh*kw].

    `dtype` is that of its products of matrices on the CPU; on CUDA it is bfloat16.
    """

    def __init__(
        self, params: Iterable[Tensor], lr: float = 0.02, momentum: float = 0.95, weight_decay: float = 0.0,
        dtype: torch.dtype = torch.float32,
    ) -> None:  # fmt: skip
        super().__init__(list(params), dict(lr=lr, momentum=momentum, weight_decay=weight_decay))
        self.dtype = dtype

    @torch.no_grad()
    def step(self, closure=None) -> None:
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                state = self.state[p]
                if "momentum" not in state:
                    state["momentum"] = torch.zeros_like(p)
                buffer = state["momentum"].lerp_(p.grad, 1 - group["momentum"])
                update = p.grad.lerp(buffer, group["momentum"]).flatten(1)
                scale = max(1.0, update.shape[0] / update.shape[1]) ** 0.5
                p.mul_(1 - group["lr"] * group["weight_decay"])
                p.add_(orthogonalise(update, dtype=self.dtype).view_as(p), alpha=-group["lr"] * scale)


class Optimisers:
    """Several optimisers driven as one, or one at a time; learning rates are multiplied by a schedule's factor at every step."""

    def __init__(self, *optimisers: torch.optim.Optimizer) -> None:
        self.all = optimisers
        self.base = [[g["lr"] for g in o.param_groups] for o in optimisers]

    def step(self, factor: float, turn: int | None = None) -> None:
        """One step of all optimisers, or of the one at index `turn`."""
        for i, (optimiser, rates) in enumerate(zip(self.all, self.base, strict=True)):
            if turn not in (None, i):
                continue
            for group, rate in zip(optimiser.param_groups, rates, strict=True):
                group["lr"] = rate * factor
            optimiser.step()
        self.zero_grad()

    def zero_grad(self) -> None:
        for optimiser in self.all:
            optimiser.zero_grad(set_to_none=True)

    def state_tensors(self) -> dict[str, Tensor]:
        """State as flat named tensors, by the order of parameters."""
        out: dict[str, Tensor] = {}
        for i, optimiser in enumerate(self.all):
            params = [p for g in optimiser.param_groups for p in g["params"]]
            for j, p in enumerate(params):
                for key, value in optimiser.state.get(p, {}).items():
                    out[f"{i}.{j}.{key}"] = torch.as_tensor(value)
        return out

    def load_state_tensors(self, tensors: dict[str, Tensor]) -> None:
        for i, optimiser in enumerate(self.all):
            params = [p for g in optimiser.param_groups for p in g["params"]]
            for name, value in tensors.items():
                index, j, key = name.split(".", 2)
                if int(index) == i:
                    p = params[int(j)]
                    optimiser.state[p][key] = value if key == "step" else value.to(p.device)


def adamw(params: Iterable[Tensor], lr: float, weight_decay: float, betas: tuple[float, float], eps: float = 1e-8) -> torch.optim.AdamW:
    """AdamW that decays matrices only, not biases and gains."""
    params = list(params)
    groups = [
        {"params": [p for p in params if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in params if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW([g for g in groups if g["params"]], lr=lr, betas=betas, eps=eps)


def build_optimisers(model: nn.Module, kind: str, lr: float, adam_lr: float, weight_decay: float, inside: str | None = None) -> Optimisers:
    """`kind` "adamw" (lr for all) or "muon" (lr for the matrices under the submodule `inside`, adam_lr for the rest)."""
    if kind not in ("adamw", "muon"):
        raise ValueError(f"optimiser is 'adamw' or 'muon', got {kind!r}.")
    named = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
    muon = [p for n, p in named if kind == "muon" and p.ndim >= 2 and min(p.shape[:2]) > 1 and (inside is None or n.startswith(inside))]
    if not named:
        return Optimisers()
    chosen = {id(p) for p in muon}
    rest = [p for _, p in named if id(p) not in chosen]
    adam = adamw(rest, adam_lr if kind == "muon" else lr, weight_decay, betas=(0.9, 0.98), eps=1e-9)
    dtype = getattr(model, "compute_dtype", None) or torch.float32
    return Optimisers(Muon(muon, lr=lr, weight_decay=weight_decay, dtype=dtype), adam) if muon else Optimisers(adam)
