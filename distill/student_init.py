"""ODE initialisation of the causal student by hybrid forcing (RELIC, arXiv 2512.04040, section 4.4.1).

1. `make_trajectories` follows the teacher's flow from noise in many steps and keeps the states at the student's few noise
   levels and the clean end (as in CausVid, arXiv 2412.07772).
2. `StudentInitStage` starts from the teacher's weights and learns to jump from any of those states to the end. A sequence has
   B blocks: the first B - K are the trajectory's clean end, seen through the compressed memory (teacher forcing); the last K
   are noisy, each at a level of its own, and see the noisy blocks before them in full (diffusion forcing). The loss is the
   mean squared error of the clean latents of the noisy blocks.

The paper does not state B, K or the number of trajectories. Here K is fixed and B is drawn anew at every step from K + 1 to the
whole length, so that every place in the sequence is learnt; the start picture is a block of its own and always clean.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from tqdm import tqdm

from distill.causal import CausalStage, channel_weight
from distill.latents import Walks
from distill.optim import build_optimisers
from distill.parallel import ALONE, Ranks, place
from distill.stage_recipes import StudentInitRecipe
from distill.teacher import sample_sequence
from distill.trainer import Deadline, Trainer, generator
from distill.work import Step, Work
from worldmodel.autoencoder import VideoAutoencoder
from worldmodel.camera_view import sequence_view, start_view
from worldmodel.memory import training_layout
from worldmodel.transformer import CausalWorldTransformer


# -- trajectories ----------------------------------------------------------------------------------------------------------
def _origin(teacher: CausalWorldTransformer, recipe: StudentInitRecipe) -> str:
    """What a trajectory depends on, to refuse a mixture: settings, and a hash of a few weights of each of the teacher's tensors."""
    digest = hashlib.sha256()
    for name, value in teacher.state_dict().items():
        digest.update(name.encode() + value.detach().flatten()[:16].float().cpu().numpy().tobytes())
    return json.dumps({
        "teacher": digest.hexdigest()[:16], "extension": teacher.config.rope_extension, "latents": recipe.latents,
        "steps": [recipe.trajectory_steps, recipe.sampler.steps], "shift": recipe.sampler.shift, "guidance": recipe.guidance,
        "shard": recipe.shard, "seed": recipe.seed,
    })  # fmt: skip


def make_trajectories(
    teacher: CausalWorldTransformer, walks: Walks, autoencoder: VideoAutoencoder, folder: Path, recipe: StudentInitRecipe,
    device: torch.device, deadline: Deadline | None = None, ranks: Ranks = ALONE,
) -> bool:  # fmt: skip
    """Write `recipe.trajectories` trajectories in shards under `folder`; returns whether all are there (False: deadline).

    Start pictures, actions, poses and prompts are those of random walks. A shard depends on its number and the seed alone, is
    written aside and renamed, and is kept when it exists. Each holds float16 `states` [n, S + 1, C, T, h, w] (S student noise
    levels, then the clean end) and float32 `actions` [n, F, 13], `poses` [n, F, 9], `text` [n, L, D]; its metadata say what it
    cost (`distill.work`). Of several processes each has a whole teacher on its device and makes every so manieth shard.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    origin, stride = _origin(teacher, recipe), recipe.trajectory_steps // recipe.sampler.steps
    teacher = teacher.to(device).eval()
    late, work = False, Work(device)
    with tqdm(total=recipe.trajectories, desc="trajectories", unit="clip", mininterval=5, disable=not ranks.main) as bar:
        for index, start in enumerate(range(0, recipe.trajectories, recipe.shard)):
            count = min(recipe.shard, recipe.trajectories - start)
            path = folder / f"trajectories-{index:05d}.safetensors"
            if path.exists():
                with safe_open(path, "pt") as f:
                    same = f.metadata()["origin"] == origin and f.get_slice("text").get_shape()[0] == count
                if not same:
                    raise ValueError(f"{path} was made by another teacher or recipe: delete {folder}, or use another --out.")
            elif index % ranks.world != ranks.rank:
                pass
            elif deadline is not None and deadline.passed:
                late = True
                break
            else:
                rng = generator(recipe.seed + 1, index)
                walk = walks.draw(count, recipe.latents, rng)
                noise = torch.randn(walk["latents"].shape, generator=rng).to(device)
                text, actions, poses = (walk[k].to(device) for k in ("text", "actions", "poses"))
                first = walk["latents"][:, :, :1].to(device)
                view = start_view(autoencoder, first, poses, teacher.config.view_focal)
                work.begin(index)
                with work.step(Step(count, recipe.latents)):
                    states = sample_sequence(
                        teacher, noise, text, actions, poses, recipe.trajectory_sampler, first, recipe.guidance, trajectory=True, view=view
                    )
                about = {"origin": origin, "work": json.dumps(work.slices[-1])}
                shard = {"states": states[::stride].transpose(0, 1).half(), "actions": actions, "poses": poses, "text": text}
                part = path.with_suffix(".part")
                save_file({k: v.cpu().contiguous() for k, v in shard.items()}, part, metadata=about)
                part.rename(path)
            bar.update(count)
    return not ranks.any(late)[0]


class Trajectories:
    """The shards that `make_trajectories` wrote; what a step needs is read from the disk."""

    def __init__(self, folder: Path) -> None:
        self.rows: list[tuple[Path, int]] = []
        for path in sorted(Path(folder).glob("trajectories-*.safetensors")):
            with safe_open(path, "pt") as f:
                self.rows += [(path, row) for row in range(f.get_slice("text").get_shape()[0])]
        if not self.rows:
            raise FileNotFoundError(f"No trajectories in {folder}: call make_trajectories with the teacher first.")

    def __len__(self) -> int:
        return len(self.rows)

    def read(self, index: int, latents: int | None = None) -> dict[str, Tensor]:
        """One trajectory, its first `latents` latent frames: float32 states [S + 1, C, T, h, w], actions, poses, text."""
        path, row = self.rows[index]
        frames = None if latents is None else 1 + 4 * (latents - 1)
        with safe_open(path, "pt") as f:
            return {
                "states": f.get_slice("states")[row : row + 1, :, :, :latents][0].float(),
                "actions": f.get_slice("actions")[row : row + 1, :frames][0],
                "poses": f.get_slice("poses")[row : row + 1, :frames][0],
                "text": f.get_slice("text")[row : row + 1][0],
            }

    def draw(self, batch: int, latents: int, rng: torch.Generator) -> dict[str, Tensor]:
        """`batch` random trajectories, stacked: states [B, S + 1, C, latents, h, w] and the rest."""
        picks = torch.randint(len(self), (batch,), generator=rng).tolist()
        found = [self.read(i, latents) for i in picks]
        return {k: torch.stack([x[k] for x in found]) for k in found[0]}


# -- hybrid forcing --------------------------------------------------------------------------------------------------------
def hybrid_levels(recipe: StudentInitRecipe, blocks: int, batch: int, rng: torch.Generator) -> Tensor:
    """State index int64 [B, T] of every latent frame: one of the student's levels for a noisy block, S (the end) for a clean one."""
    drawn = torch.randint(recipe.sampler.steps, (batch, recipe.noisy_blocks), generator=rng)
    clean = torch.full((batch, recipe.latents_of(blocks - recipe.noisy_blocks)), recipe.sampler.steps)
    return torch.cat([clean, drawn.repeat_interleave(recipe.chunk, dim=1)], dim=1)


class StudentInitStage(CausalStage):
    """Regresses the student on the trajectories in ``folder/trajectories``; it plays and is looked at as the causal stage is."""

    def __init__(
        self, recipe: StudentInitRecipe, folder: Path, walks: Walks, held_out: Walks, autoencoder: VideoAutoencoder, device: torch.device,
        init: CausalWorldTransformer | dict[str, Tensor] | None = None, ranks: Ranks = ALONE,
    ) -> None:  # fmt: skip
        """`init`: the teacher, for its config and weights; or weights for a transformer of `recipe.transformer`."""
        self.recipe, self.folder, self.walks, self.held_out = recipe, Path(folder), walks, held_out
        self.autoencoder, self.device = autoencoder, device
        self.trajectories = Trajectories(self.folder / "trajectories")
        self.ranks = ranks
        ranks.share(recipe.batch)
        torch.manual_seed(recipe.seed)
        if isinstance(init, CausalWorldTransformer):
            self.model = CausalWorldTransformer.from_config(init.config)
            init = init.state_dict()
        else:
            channels = walks.groups.shape[2]
            defaults = {"in_channels": channels, "out_channels": channels, "text_dim": walks.text.shape[2]}
            self.model = CausalWorldTransformer(**defaults | recipe.transformer)
        if init is not None:
            self.model.load_state_dict(init)
        self.model = place(self.model, ranks, device)
        self.channel_weight = channel_weight(autoencoder, recipe.pixel_weight, device)
        self.grid = self.model.grid(tuple(walks.groups.shape[-2:]))
        self.sigmas = recipe.sampler.scheduler().sigmas  # S levels and 0
        optimisers = build_optimisers(self.model, recipe.optimiser, recipe.lr, recipe.adam_lr, recipe.weight_decay, inside="blocks")
        self.trainer = Trainer(
            "student_init", self.folder, self.model, optimisers, self.loss, steps=recipe.steps, ema=recipe.ema, sample=self.sample,
            shape=self.shape, ranks=ranks,
        )  # fmt: skip

    def shape(self, step: int) -> Step:
        return Step(self.recipe.batch, self.recipe.latents_of(self._begin(step)[1]))

    def _begin(self, step: int) -> tuple[torch.Generator, int]:
        """The generator of a step, after the number of its blocks was drawn from it."""
        r, rng = self.recipe, generator(self.recipe.seed, step)
        return rng, int(torch.randint(r.noisy_blocks + 1, r.blocks + 1, (), generator=rng))

    def loss(self, step: int) -> tuple[Tensor, dict[str, float]]:
        r, to = self.recipe, self.device
        rng, blocks = self._begin(step)
        latents = r.latents_of(blocks)
        drawn = self.trajectories.draw(r.batch, latents, rng)
        index = hybrid_levels(r, blocks, r.batch, rng)  # B T
        mine = self.ranks.share(r.batch)  # rows of the global batch; the loss is a mean over rows
        drawn, index = {k: v[mine] for k, v in drawn.items()}, index[mine]
        states = drawn["states"]  # B S+1 C T h w
        at = index[:, None, None, :, None, None].expand(-1, 1, *states.shape[2:])
        x, end, sigma = states.gather(1, at)[:, 0].to(to), states[:, -1].to(to), self.sigmas[index].to(to)
        layout = training_layout(r.memory, latents, self.grid, r.chunk, str(to), noisy_blocks=r.noisy_blocks)
        text, actions, poses = (drawn[k].to(to) for k in ("text", "actions", "poses"))
        c, many = self.model.config, r.chunk * r.noisy_blocks
        view = sequence_view(self.autoencoder, end, poses, r.chunk, r.memory, c.view_pictures, c.view_focal, last=many)
        out = self.model(x, 1000 * sigma, text, actions, poses, layout=layout, view=view)
        guess = out if self.model.config.prediction_type == "sample" else x - sigma[:, None, :, None, None] * out
        return ((guess - end).square() * self.channel_weight)[:, :, -many:].mean(), {"blocks": float(blocks)}
