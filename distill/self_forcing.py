"""Stage 4: self-forcing distillation, the generator trained on its own roll-outs over the whole horizon.

RELIC (arXiv 2512.04040, section 4.4.2) on Self-Forcing (arXiv 2506.08009): the generator rolls out through its own compressed
cache from start pictures and actions of the training walks, and distribution matching (`dmd`) against a bidirectional teacher
gives the gradient, by replayed back-propagation (`replay`). Between two generator steps the fake score learns what the
generator makes now. The horizon grows by the curriculum, 5 s, 10 s, 20 s, and each length is scored by the teacher of that length.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from distill.causal import channel_weight
from distill.dmd import Condition, fake_score_loss, sample_level, score_difference
from distill.latents import Walks
from distill.optim import Optimisers, adamw
from distill.parallel import ALONE, Ranks, finish_model, load_full, place
from distill.replay import full_graph_backward, replay_backward
from distill.rollout import roll_out, sample_sheet
from distill.stage_recipes import FAKE, GENERATOR, SelfForcingRecipe
from distill.teacher import teacher_for
from distill.trainer import Trainer, generator, phase
from distill.work import Step
from worldmodel.autoencoder import VideoAutoencoder
from worldmodel.camera_view import start_view
from worldmodel.transformer import CausalWorldTransformer

Init = CausalWorldTransformer | dict[str, Tensor]


class SelfForcingStage:
    """Distils a causal generator from a bidirectional teacher.

    Args:
        generator_init: the few-step causal model to start from; or weights for a transformer of `recipe.transformer`.
        real_score_init: the teacher; or weights for a transformer of `recipe.transformer | recipe.score`. It stays frozen; the
            fake score starts from the same weights.
        teachers: folder of the teacher's stage, from which the real score of each length is taken (`teacher.teacher_for`); the
            fake score goes on with the rotary embedding of that length. None: `real_score_init` for all.
        ranks: several processes shard all three and need `recipe.replay`.
    """

    def __init__(
        self, recipe: SelfForcingRecipe, folder: Path, walks: Walks, held_out: Walks, autoencoder: VideoAutoencoder,
        device: torch.device, generator_init: Init, real_score_init: Init, ranks: Ranks = ALONE,
        teachers: Path | None = None,
    ) -> None:  # fmt: skip
        self.recipe, self.folder, self.walks, self.held_out = recipe, Path(folder), walks, held_out
        self.autoencoder, self.device = autoencoder, device
        self.ranks, self.teachers, self._teacher = ranks, teachers, None
        for *_, batch in recipe.curriculum:
            ranks.share(batch)
        if ranks.world > 1 and not recipe.replay:
            raise ValueError("Several processes replay block by block: set self_forcing.replay=true.")
        channels = walks.groups.shape[2]
        shape = {"in_channels": channels, "out_channels": channels, "text_dim": walks.text.shape[2]} | recipe.transformer
        self.generator = _build(shape, generator_init, "generator", device, ranks)
        self.fake = _build(shape | recipe.score, real_score_init, "score", device, ranks)
        self.real = _build(shape | recipe.score, real_score_init, "score", device, ranks).eval().requires_grad_(False)
        optimisers = Optimisers(
            adamw(self.generator.parameters(), recipe.lr, recipe.weight_decay, recipe.betas),
            adamw(self.fake.parameters(), recipe.critic_lr, recipe.weight_decay, recipe.betas),
        )
        self.channel_weight = channel_weight(autoencoder, recipe.pixel_weight, device)
        self.losses: dict[str, float] = {}
        self.trainer = Trainer(
            "self_forcing", self.folder, nn.ModuleDict({"generator": self.generator, "fake": self.fake}), optimisers, self.loss,
            steps=recipe.steps, warmup=recipe.warmup, ema=recipe.ema, clip=recipe.clip, sample=self.sample, turn=recipe.turn,
            averaged=self.generator, shape=self.shape, ranks=ranks,
        )  # fmt: skip

    def shape(self, step: int) -> Step:
        latents, batch = phase(self.recipe.curriculum, step, self.recipe.steps)
        return Step(batch, latents, f"{('generator', 'fake')[self.recipe.turn(step)]}, exit {self._begin(step)[2]}")

    def _begin(self, step: int) -> tuple[torch.Generator, dict[str, Tensor], int]:
        """The generator of a step, after the walks and the exit step were drawn from it."""
        latents, batch = phase(self.recipe.curriculum, step, self.recipe.steps)
        rng = generator(self.recipe.seed, step)
        walk = self.walks.draw(batch, latents, rng)
        return rng, walk, int(torch.randint(self.recipe.sampler.steps, (), generator=rng))

    def loss(self, step: int) -> tuple[Tensor, dict[str, float]]:
        """The loss of the one whose turn it is; the generator's has been back-propagated already and has no graph."""
        r, to = self.recipe, self.device
        latents, batch = phase(r.curriculum, step, r.steps)
        self._score_by_teacher_of(latents)
        rng, walk, exit_step = self._begin(step)
        mine = self.ranks.share(batch)  # rows of the global batch; losses are means over rows
        truth = walk["latents"][mine].to(to)
        condition = Condition(walk["text"][mine], walk["actions"][mine], walk["poses"][mine]).to(to)
        view = start_view(self.autoencoder, truth[:, :, :1], condition.poses, self.real.config.view_focal)
        condition = replace(condition, view=view)
        seed = int(torch.randint(2**31, (), generator=rng))
        level = sample_level(batch, rng, r.sampler.shift, r.clamp)[mine].to(to)
        noise = torch.randn(walk["latents"].shape, generator=rng)[mine].to(to)
        turn = r.turn(step)
        graph = turn == GENERATOR and not r.replay
        played = roll_out(self.generator, truth[:, :, :1], condition, r.roll_out(self.autoencoder), seed, exit_step, graph, self.ranks)
        if turn == FAKE:
            loss = fake_score_loss(self.fake, played.latents, condition, level, noise)
            self.losses["fake"] = float(loss.detach())
        else:
            difference = score_difference(played.latents, self.real, self.fake, condition, level, noise, r.guidance)
            if r.regression:
                difference = difference + r.regression * self.channel_weight * (played.latents.detach() - truth)
            loss = replay_backward(self.generator, played, difference) if r.replay else full_graph_backward(played, difference)
            self.losses["generator"] = float(loss)
        return loss, {"latents": float(latents)} | self.losses

    def _score_by_teacher_of(self, latents: int) -> None:
        """Load the real score for walks of this length, unless it is there."""
        folder = None if self.teachers is None else teacher_for(self.teachers, latents)
        if folder == self._teacher:
            return
        teacher = CausalWorldTransformer.from_pretrained(folder, torch_dtype=torch.float32)
        if self.ranks.world > 1:
            load_full(self.real, teacher.state_dict(), self.ranks)
        else:
            self.real.load_state_dict(teacher.state_dict())
        for score in (self.real, self.fake):
            score.set_rope_extension(teacher.config.rope_extension, teacher.config.rope_original_latents)
        self._teacher = folder

    def sample(self, folder: Path) -> dict[str, Any]:
        """Roll-outs of held-out clips beside ground truth, and their PSNR."""
        path = folder / f"sheet-{self.trainer.step:06d}.png"
        return sample_sheet(self.generator, self.held_out, self.autoencoder, self.recipe.roll_out(self.autoencoder), path)

    def finish(self) -> CausalWorldTransformer:
        """The averaged generator, saved under `folder`/model."""
        return finish_model(self.generator, self.trainer.ema.weights, self.folder / "model", self.ranks)


def _build(shape: dict[str, Any], init: Init, name: str, device: torch.device, ranks: Ranks) -> CausalWorldTransformer:
    if isinstance(init, CausalWorldTransformer):
        model, weights = CausalWorldTransformer.from_config(init.config), init.state_dict()
    else:
        model, weights = CausalWorldTransformer(**shape), init
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        raise ValueError(f"The initial weights of the {name} do not fit the recipe's transformer: {error}") from error
    return place(model, ranks, device)
