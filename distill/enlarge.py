"""A world model for pictures twice as large, from one that is trained.

    python -m distill.enlarge --model SMALL --autoencoder RUN/autoencoder/model --clips RUN/data --out LARGE

A token then stands for the same part of the picture, now four latents instead of one, so all of the transformer stays as it is but its
first and last layers. Codes are linear, so these can be told exactly what the old ones would have seen: the larger picture's latents,
synthesised, averaged to half the size and analysed by the old code (`smaller`). What the old last layer says is put into the new code by
least squares over real pictures (`larger`); the fine detail that it cannot know comes from the camera view. So the model plays from the
first moment, and `distill.train --from` goes on from there.
"""

from __future__ import annotations

import argparse
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from distill.autoencoder import draw_pieces, to_video
from distill.dataset import read_clip, stems
from distill.trainer import generator
from worldmodel.autoencoder import TEMPORAL_STRIDE, TinyAutoencoder
from worldmodel.camera_view import CELLS, from_patches, to_patches
from worldmodel.loading import find_model
from worldmodel.model import ModelError, WorldModel
from worldmodel.transformer import CausalWorldTransformer

FACTOR = 2
CLIPS, PIECES = 64, 400
"""Clips that are read, and pieces of a few frames drawn from them, for the least squares."""


@torch.no_grad()
def smaller(old: TinyAutoencoder, new: TinyAutoencoder) -> tuple[Tensor, Tensor]:
    """Matrix [C, 4 C'] and offset [C]: from a token's four latents of the larger pictures to the latent of the smaller ones"""
    c = new.latent_channels

    def see(tokens: Tensor) -> Tensor:
        frames = new.linear_frames(from_patches(tokens.unsqueeze(1), (1, 1), (FACTOR, FACTOR)))
        return old.encode(F.avg_pool3d(frames, (1, FACTOR, FACTOR)), grouped=True)[:, :, 0, 0, 0]

    offset = see(torch.zeros(1, FACTOR**2 * c))[0]
    return (see(torch.eye(FACTOR**2 * c)) - offset).T, offset


@torch.no_grad()
def larger(new: TinyAutoencoder, down: tuple[Tensor, Tensor], frames: np.ndarray, pieces: int = PIECES) -> tuple[Tensor, Tensor]:
    """Matrix [4 C', C] and offset [4 C'] back, with the least squared error over pieces of clips uint8 [N, T, H, W, 3]"""
    groups = to_video(draw_pieces(frames, pieces, TEMPORAL_STRIDE, generator(0, 0)))
    tokens = torch.cat([to_patches(new.encode(x, grouped=True)[:, :, 0], (FACTOR, FACTOR)).flatten(0, 1) for x in groups.split(16)])
    seen = tokens @ down[0].T + down[1]
    known = torch.cat([seen, torch.ones(len(seen), 1)], 1).double()
    ridge = torch.full((known.shape[1],), 1e-3 * len(seen), dtype=torch.float64)
    ridge[-1] = 0
    found = torch.linalg.solve(known.T @ known + ridge.diag(), known.T @ tokens.double()).float()
    return found[:-1].T.contiguous(), found[-1]


def enlarge(model: WorldModel, autoencoder: TinyAutoencoder, frames: np.ndarray) -> WorldModel:
    """`model` for pictures of twice the height and width, coded by `autoencoder`; `frames` are clips of that size, uint8 [N, T, H, W, 3].

    Raises ModelError where its tokens are not one latent each, or its autoencoder is not linear.
    """
    old, known = model.autoencoder, model.transformer
    if tuple(known.config.patch_size) != (1, 1, 1) or not isinstance(old, TinyAutoencoder):
        raise ModelError("Only a model whose tokens are single latents of a TinyAutoencoder can be enlarged.")
    if autoencoder.depth is None and old.depth is not None:
        autoencoder = autoencoder.with_depth(old.depth.at_pool(FACTOR * old.depth.pool))
    down = smaller(old, autoencoder)
    up = larger(autoencoder, down, frames)
    channels = autoencoder.latent_channels
    config = {k: v for k, v in known.config.items() if not k.startswith("_")}
    made = CausalWorldTransformer(**config | {"patch_size": (1, FACTOR, FACTOR), "in_channels": channels, "out_channels": channels})
    weights = dict(known.state_dict())
    first, bias = weights["patch_embedding.weight"].flatten(1), "patch_embedding.bias"
    weights["patch_embedding.weight"] = (first @ down[0]).unflatten(1, (FACTOR, FACTOR, channels)).permute(0, 3, 1, 2).unsqueeze(2)
    weights[bias] = weights[bias] + first @ down[1]
    weights["proj_out.weight"], weights["proj_out.bias"] = up[0] @ weights["proj_out.weight"], up[0] @ weights["proj_out.bias"] + up[1]
    if made.view_blend is not None:
        enter, bias = weights["view_blend.enter.weight"], "view_blend.enter.bias"
        weights["view_blend.enter.weight"], weights[bias] = enter @ down[0], weights[bias] + enter @ down[1]
        weights["view_blend.enter_reach.weight"] = finer_cells(weights["view_blend.enter_reach.weight"])
        for name in ("view_blend.gate.weight", "view_blend.gate.bias"):
            weights[name] = finer_gate(weights[name], channels)
    made.load_state_dict(weights)
    height, width = model.size
    changed = replace(model.config, size=(FACTOR * height, FACTOR * width))
    return WorldModel(made, autoencoder, model.text, changed, known_pictures=model.known_pictures)


def finer_cells(weight: Tensor) -> Tensor:
    """Columns [D, 4 * CELLS^2] for the cells of one latent -> [D, 4 * 4 * CELLS^2] for a token of four, which are averaged to the former"""
    cells = weight.unflatten(1, (TEMPORAL_STRIDE, CELLS, CELLS)) / FACTOR**2
    fine = cells.repeat_interleave(FACTOR, 2).repeat_interleave(FACTOR, 3)  # D 4 2C 2C
    return fine.unflatten(3, (FACTOR, CELLS)).unflatten(2, (FACTOR, CELLS)).permute(0, 2, 4, 1, 3, 5).flatten(1)


def finer_gate(rows: Tensor, channels: int) -> Tensor:
    """Rows [C, ...] of the old code's channels -> [4 C', ...]: each channel has those of the four that are as strong in its rank, and
    what is finer than all the old ones those of the finest."""
    index = torch.arange(channels).mul(FACTOR**2).unsqueeze(1) + torch.arange(FACTOR**2)
    finest = rows[-len(rows) // FACTOR**2 :].mean(0, keepdim=True).expand(FACTOR**2, *rows.shape[1:])
    mine = torch.cat([rows, finest])[torch.where(index < len(rows), index, len(rows) + torch.arange(FACTOR**2))].mean(1)
    return mine.repeat(FACTOR**2, *[1] * (rows.ndim - 1))


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m distill.enlarge", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="tiny", help="a world model whose tokens are single latents")
    parser.add_argument(
        "--autoencoder", type=Path, required=True, help="one of larger pictures (RUN/autoencoder/model of a distill.train run)"
    )
    parser.add_argument("--clips", type=Path, required=True, help="posed clips of the larger size (RUN/data)")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args(argv)
    try:
        model = WorldModel.from_pretrained(args.model, dtype=torch.float32, device="cpu")
        autoencoder = TinyAutoencoder.from_pretrained(args.autoencoder, torch_dtype=torch.float32).eval()
        if not (found := stems(args.clips)[:CLIPS]):
            raise ModelError(f"There are no clips in {args.clips}.")
        frames = np.stack([read_clip(stem).frames for stem in found])
        if frames.shape[2:4] != tuple(FACTOR * n for n in model.size):
            raise ModelError(
                f"{args.model} makes {model.size[0]}x{model.size[1]} pixels, so clips have twice that; these have {frames.shape[2:4]}."
            )
        enlarge(model, autoencoder, frames).save_pretrained(args.out, dtype=None)
        if (prompts := find_model(args.model) / "prompts.safetensors").exists():
            shutil.copy(prompts, args.out)
    except (ModelError, ValueError, OSError) as error:
        parser.exit(2, f"{error}\n")
    print(f"{args.out}: python -m distill.train RECIPE --from {args.out} goes on from here.")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
