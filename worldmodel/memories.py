"""Rival memories behind `CompressedMemory`'s interface, to compare what different memories do for the same weights. Not RELIC's.

`MemoryConfig.policy` names one, `new_memory` makes it. All keep the window in full and differ in what becomes of what leaves it:

- ``relic`` (`CompressedMemory`): pooled by a fixed schedule, the oldest forgotten beyond the horizon;
- ``age`` (`AgeMemory`): pooled further the older it gets, as FramePack (arXiv 2504.12626) does with its frames;
- ``retrieval`` (`RetrievalMemory`): kept aside in full, and for each chunk those latent frames are fetched whose pictures show
  most of what the chunk will see, as many as a budget of tokens takes;
- ``visible`` (`VisibleMemory`): pooled by RELIC's schedule; when the budget is full that latent frame goes without which least
  is lost of what can be seen from the camera's place.

The last two need the camera's pose of every chunk (`look`), before it is denoised and before it is written. They take one world
at a time, since each choice is for one camera.
"""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from torch import Tensor

from worldmodel.camera_view import shown
from worldmodel.configs import AGE_FACTORS, MemoryConfig
from worldmodel.memory import CompressedMemory, _Entry
from worldmodel.projection import pixel_rays

USUAL_FOCAL = 0.5 / math.tan(math.radians(35))
"""Focal length over width where a model names none: that of the training worlds, 70 degrees across."""
DIRECTIONS = 512
"""Directions all around in which `VisibleMemory` asks what can be seen."""


class AgeMemory(CompressedMemory):
    """Pooled further with age: the window by 1, twice as many latent frames before it by 2x2, everything older by 4x4.

    So a latent frame at twice the age has a quarter of the tokens, and each band costs half of the one after it. What is pooled
    already is pooled again: the mean of a cell's means. The start picture stays whole, the horizon is `CompressedMemory`'s.
    """

    def _capacity(self) -> int:
        ages = range(1, self.config.horizon + 1)
        return sum(self._tokens(self._factor_at(a)) for a in ages) + (self.chunk + 2) * self.tokens_per_latent

    def _factor_at(self, age: int) -> int:
        """Of a latent frame that is the `age`-th from the end."""
        band = next((k for k in range(len(AGE_FACTORS)) if age <= self.config.window * (2 ** (k + 1) - 1)), len(AGE_FACTORS) - 1)
        return AGE_FACTORS[band]

    def _factor(self, index: int) -> int:
        if super()._factor(index) == 0 or index == 0:
            return int(index == 0)
        return self._factor_at(self.count - index)


class _PosedMemory(CompressedMemory):
    """A memory that knows the pose code of every latent frame written, and those of the chunk that comes next."""

    def __init__(self, config: MemoryConfig, *args, focal: float = USUAL_FOCAL, **kwargs) -> None:
        super().__init__(config, *args, **kwargs)
        if self.keys.shape[1] != 1:
            raise ValueError(f"A memory of policy {config.policy!r} chooses for one camera: the batch is 1, got {self.keys.shape[1]}.")
        self.focal = focal
        self._poses = torch.zeros(0, 9)  # of latent frames 0..count-1
        self._next: Tensor | None = None  # [t, 9]

    @property
    def _aspect(self) -> float:
        return self.grid[1] / self.grid[0]

    def look(self, poses: Tensor) -> None:
        """Pose codes [1, t, 9] of the last video frames of the latent frames that come next."""
        self._next = poses[0].detach().float().cpu()

    def commit(self, latents: int) -> None:
        self._keep_poses(latents)
        super().commit(latents)

    def forget_newest(self, latents: int) -> None:
        super().forget_newest(latents)
        self._poses, self._next = self._poses[: self.count], None

    def _keep_poses(self, latents: int) -> None:
        if self._next is None or len(self._next) != latents:
            raise ValueError(f"A memory of policy {self.config.policy!r} chooses by poses: call look with {latents} before writing.")
        self._poses = torch.cat([self._poses, self._next])

    def _shown(self, index: Tensor, there: Tensor, rays: Tensor) -> Tensor:
        """Quality [S, t * P] with which latent frames `index` [S] show what the rays [P, 3] from poses `there` [t, 9] meet."""
        here = self._poses[index].expand(len(there), -1, -1)
        return shown(here, there, index, rays, self.focal, self._aspect)[0].transpose(0, 1).flatten(1)

    def state_dict(self) -> dict[str, Tensor]:
        return super().state_dict() | {"poses": self._poses.clone()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        super().load_state_dict(state)
        self._poses, self._next = state["poses"].clone(), None


class VisibleMemory(_PosedMemory):
    """RELIC's compressed past within a budget of tokens, without its oldest-first rule: it can remember a place for an hour.

    When the past has more than `budget` tokens or than the horizon's latent frames, one goes. In `DIRECTIONS` all around the
    camera's place, for one may turn, it is asked with what quality each latent frame's picture shows what lies there (as
    `camera_view.choose_pictures` judges it). The one goes without which the best of all loses least, the window included; among
    equals the one that shows least, then the oldest. So of many pictures of the same, one is kept. The start picture stays.
    """

    def __init__(self, config: MemoryConfig, *args, **kwargs) -> None:
        super().__init__(config, *args, **kwargs)
        self._forgotten: set[int] = set()
        if self._budget < self._tokens(config.factor(0)):
            raise ValueError(f"The start picture has {self._tokens(config.factor(0))} tokens; the memory's budget {self._budget} is less.")

    @property
    def _budget(self) -> int:
        return self.config.past_budget(self.grid, self.chunk)

    def _capacity(self) -> int:
        return self._budget + (self.config.window + self.chunk + 1) * self.tokens_per_latent

    def _factor(self, index: int) -> int:
        if index >= self.count - self.config.window:
            return 1
        return 0 if index in self._forgotten else self.config.factor(index)

    def _compress(self) -> None:
        self._forgotten = self._choose_forgotten()
        super()._compress()

    def _choose_forgotten(self) -> set[int]:
        held = [e.index for e in self._entries]
        past = [i for i in held if i < self.count - self.config.window]
        cost = sum(self._tokens(self.config.factor(i)) for i in past)
        most = self.config.horizon - self.chunk
        if cost <= self._budget and len(held) <= most:
            return set()
        seen = self._shown(torch.tensor(held), self._next[-1:], directions(DIRECTIONS))
        forgotten: set[int] = set()
        while cost > self._budget or len(held) - len(forgotten) > most:
            rows = [k for k, i in enumerate(held) if i not in forgotten]
            second = seen[rows].topk(min(2, len(rows)), dim=0).values[-1]
            lost = (seen - second).clamp_min(0).sum(1)
            able = [k for k in rows if held[k] and held[k] in past]
            out = held[min(able, key=lambda k: (round(float(lost[k]), 3), round(float(seen[k].sum()), 3), held[k]))]
            forgotten.add(out)
            cost -= self._tokens(self.config.factor(out))
        return forgotten


class RetrievalMemory(_PosedMemory):
    """Everything in full on the CPU; a chunk looks at the window and at those older latent frames that show most of what it sees.

    The choice is greedy, as `camera_view.choose_pictures` makes it: one after the other, that which raises most the best quality
    with which the chunk's views are shown, by the window to begin with; when nothing is gained any more, that which shows most.
    Whole latent frames are taken, at most `budget` tokens of them, none that shows nothing. What is kept grows with time.
    """

    def __init__(self, config: MemoryConfig, *args, **kwargs) -> None:
        super().__init__(config, *args, **kwargs)
        self._aside: list[tuple[Tensor, Tensor]] = []  # keys, values [layers, 1, heads, N, head_dim]; never written again

    @property
    def _most(self) -> int:
        """Latent frames that fit into the budget, and with window and chunk into the horizon."""
        room = self.config.horizon - self.chunk - self.config.window
        return max(0, min(self.config.past_budget(self.grid, self.chunk) // self.tokens_per_latent, room))

    def _capacity(self) -> int:
        return (self._most + self.config.window) * self.tokens_per_latent

    @property
    def num_bytes(self) -> int:
        """Bytes of all buffers and of what is kept aside."""
        return super().num_bytes + sum(x.numel() * x.element_size() for pair in self._aside for x in pair)

    def look(self, poses: Tensor) -> None:
        before = self._next
        super().look(poses)
        if self._aside and (before is None or not torch.equal(before, self._next)):
            self._fetch(self._next)

    @torch.no_grad()
    def commit(self, latents: int) -> None:
        n, at = self.tokens_per_latent, self.num_tokens
        self._keep_poses(latents)
        for start in range(at, at + latents * n, n):
            self._aside.append(tuple(buffer[:, :, :, start : start + n].to("cpu", copy=True) for buffer in (self.keys, self.values)))
        self.count = len(self._aside)
        self._next = None
        self._fetch(self._poses[-1:])

    def forget_newest(self, latents: int) -> None:
        super().forget_newest(latents)
        self._aside = self._aside[: self.count]

    def recallable(self) -> list[int]:
        """Everything, for any of it may be fetched."""
        return list(range(self.count))

    def _fetch(self, there: Tensor) -> None:
        """Fill the buffers for a chunk seen from `there` [t, 9]."""
        start = max(0, self.count - self.config.window)
        wanted = [*self._choose(start, there), *range(start, self.count)]
        n = self.tokens_per_latent
        for k, i in enumerate(wanted):
            for buffer, aside in zip((self.keys, self.values), self._aside[i], strict=True):
                buffer[:, :, :, k * n : (k + 1) * n] = aside.to(buffer)
        self._entries, self._rotated_for = [_Entry(i, 1, n) for i in wanted], None

    def _choose(self, start: int, there: Tensor) -> list[int]:
        """Which of the latent frames before the window, in the order of time."""
        rays = pixel_rays((8, max(1, round(8 * self._aspect))), self.focal, "cpu")
        seen = self._shown(torch.arange(self.count), there, rays)
        best, free = seen[start:].amax(0), torch.ones(start, dtype=torch.bool)
        seen = seen[:start]
        picks: list[int] = []
        while len(picks) < min(self._most, start):
            gain, overlap = (x.masked_fill(~free, -1) for x in ((seen - best).clamp_min(0).sum(1), seen.sum(1)))
            pick = int((gain if gain.max() > 0 else overlap).argmax())
            if seen[pick].max() <= 0:
                break
            picks.append(pick)
            free[pick], best = False, torch.maximum(best, seen[pick])
        return sorted(picks)

    # -- state -------------------------------------------------------------------------------------------------------------
    def state_dict(self) -> dict[str, Tensor]:
        """What is kept aside is never changed, so states share it: a snapshot costs next to nothing."""
        aside = {f"{kind}.{i:06d}": x for i, pair in enumerate(self._aside) for kind, x in zip(("keys", "values"), pair, strict=True)}
        return aside | {"poses": self._poses.clone(), "count": torch.tensor(self.count)}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        count = int(state["count"])
        aside = [(state[f"keys.{i:06d}"].cpu(), state[f"values.{i:06d}"].cpu()) for i in range(count)]
        expected = (*self.keys.shape[:3], self.tokens_per_latent, self.keys.shape[4])
        if aside and tuple(aside[0][0].shape) != expected:
            raise ValueError(
                f"This memory keeps latent frames of shape {expected}, the saved one {tuple(aside[0][0].shape)}: another model made it."
            )
        self.count, self._aside, self._poses, self._next, self._entries = count, aside, state["poses"].clone(), None, []
        if count:
            self._fetch(self._poses[-1:])


@lru_cache(maxsize=4)
def directions(count: int) -> Tensor:
    """Unit vectors [count, 3], evenly spread over the sphere (a Fibonacci lattice)."""
    k = torch.arange(count, dtype=torch.float64)
    y = 1 - (2 * k + 1) / count
    angle = k * math.pi * (3 - math.sqrt(5))
    radius = (1 - y**2).sqrt()
    return torch.stack([radius * angle.cos(), y, radius * angle.sin()], -1).float()


POLICIES = {"relic": CompressedMemory, "age": AgeMemory, "retrieval": RetrievalMemory, "visible": VisibleMemory}


def new_memory(config: MemoryConfig, *args, focal: float = 0.0, **kwargs) -> CompressedMemory:
    """The memory that `config.policy` names; other arguments are `CompressedMemory`'s, `focal` the pictures' focal length over width."""
    kind = POLICIES[config.policy]
    if issubclass(kind, _PosedMemory):
        kwargs["focal"] = focal or USUAL_FOCAL
    return kind(config, *args, **kwargs)
