"""Remembered pictures, seen from where the camera goes next. Not RELIC's; off unless a config gives a focal length.

Most of the next picture was seen before from another place, and all poses are known exactly. So a small model need not learn
how a turn moves pixels: the last picture and a few remembered ones are put together as they look from the poses of the next frames, and
shown to the transformer; in the end they take the place of what it made itself, wherever one of them shows what is there. How far away
things are is told by the autoencoder's depth (`worldmodel.depth`), once for each picture. A turn needs no depth and is exact.

Which pictures: first the last one, then those that add most to what can be seen from the new pose (`choose_pictures`). A picture
made long after the start has been looked up many times over, and one taken from far away shows other sides of things, so both count
less (`quality`); that is why looking back at the start shows the start picture again. What none of them shows is guessed (`mirrors`).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from worldmodel.autoencoder import TEMPORAL_STRIDE, TinyAutoencoder
from worldmodel.configs import MemoryConfig
from worldmodel.depth import FINEST
from worldmodel.mirrors import Mirrors
from worldmodel.projection import fill, inside, look_up, pixel_rays, relative, rotation_and_position, splat
from worldmodel.tone import BANDS

CELLS = 4
"""Cells per token and axis in which tokens are told what is known."""
USUAL = 0.02
"""Inverse depth at which it is judged what a picture shows."""
FADES, FADED = 0.98, 80
"""Quality that a picture keeps for every latent frame between the start and it, and after how many it fades no more."""
FAR_AWAY = 512.0
"""Steps between two places at which the picture of one is half as good for the other."""
SHARPER, LEAST = 24.0, 0.25
"""Power of the quality by which pictures are weighed where several reach, and the least share of the best one's with which they are: of
less the power would be nothing at all in float32."""
NOTHING = 1e-20
"""What the first picture weighs where no picture shows anything."""
ASTRAY = 2.0
"""Pixels, of pictures as fine as depth is looked for in, by which a look-up may go astray for what is there being elsewhere; at twice that
it shows something else."""


Remembered = Callable[[Tensor], tuple[Tensor, Tensor]]
"""Gives pictures [M, 3, H, W] and their inverse depth [M, k, l] of remembered latent frames [M], counted through B sequences of S."""


def fading(here: Tensor, there: Tensor, index: Tensor) -> Tensor:
    """The quality [N, S] of pictures, which fades with `index` [S], latent frames from the start, and with distance; pose codes `here`
    [N, S, 9] of the pictures and `there` [N, 9]."""
    _, move = relative(here, there.unsqueeze(1))
    return FADES ** index.to(here).clamp(max=FADED) / (1 + move.norm(dim=-1) / FAR_AWAY)


def weighed(quality: Tensor) -> Tensor:
    """What pictures of a quality [N, S] weigh against each other: 1 the best of them, and none nothing"""
    return (quality / quality.amax(1, keepdim=True).clamp_min(1e-9)).clamp_min(LEAST) ** SHARPER


def shown(here: Tensor, there: Tensor, index: Tensor, rays: Tensor, focal: float, aspect: float) -> tuple[Tensor, Tensor]:
    """With what quality pictures show the places that rays [P, 3] from new poses meet: [N, S, P], 0 where they do not; and the
    quality [N, S] of each (`fading`).

    Pose codes `here` [N, S, 9] of the pictures and `there` [N, 9]; `aspect` is a picture's width over its height.
    """
    quality = fading(here, there, index)
    meets = inside(*look_up(rays, *relative(here, there.unsqueeze(1)), USUAL, focal, aspect))
    return meets * quality.unsqueeze(-1), quality


# -- which pictures --------------------------------------------------------------------------------------------------------
@torch.no_grad()
def choose_pictures(
    here: Tensor, there: Tensor, index: Tensor, allowed: Tensor, last: Tensor, count: int, focal: float, size: tuple[int, int]
) -> tuple[Tensor, Tensor]:
    """The last picture and `count` - 1 others that together show best what is seen from a new pose.

    Picture after picture is added that raises most the best quality with which each of the new picture's places is shown.

    Args:
        here: pose codes [N, S, 9] of the candidates; `index` [S], when they were, in latent frames from the start.
        there: pose codes [N, 9] wanted.
        allowed: [N, S], which may be chosen; `last` [N], the candidate that is chosen in any case.

    Returns:
        picks [N, count] and their quality [N, count]; when no other adds anything, the last one again, with quality 0.
    """
    rays = pixel_rays((8, 8 * size[1] // size[0]), focal, str(here.device), here.dtype)
    seen, quality = shown(here, there, index, rays, focal, size[1] / size[0])
    seen = seen * allowed.unsqueeze(-1)  # N S P
    rows = torch.arange(len(here), device=here.device)
    picks, qualities = [last], [quality[rows, last]]
    best = seen[rows, last]  # N P
    for _ in range(count - 1):
        gain = (seen - best.unsqueeze(1)).clamp_min(0).sum(-1)  # N S
        most, pick = gain.max(1)
        picks.append(torch.where(most > 0, pick, last))
        qualities.append(quality[rows, pick] * (most > 0))
        best = torch.maximum(best, seen[rows, picks[-1]])
    return torch.stack(picks, 1), torch.stack(qualities, 1)


# -- the view --------------------------------------------------------------------------------------------------------------
class CameraView:
    """K pictures as they look in the next `TEMPORAL_STRIDE` frames.

    Each picture's points are put where they are seen from the new poses (`splat`), which gives the new frames' depth; through it every
    pixel is looked up in the pictures. A picture shows a pixel if it is inside and what the picture has there is that far away, so
    that what hides behind something stays unknown.

    Args:
        autoencoder: its linear code turns latents into pixels and warped pixels into latents.
        pictures, inverse_depth: [N, K, 3, H, W], the last video frames of remembered latent frames, and [N, K, k, l] in 1/steps.
        here, there: pose codes [N, K, 9] of the pictures and [N, 4, 9] of the frames wanted.
        quality: [N, K], how much each picture counts where several reach.
        focal: focal length over picture width.
        mirrors: what is shown where no picture reaches; otherwise what is at the edge goes on.

    Attributes:
        frames: [N, 3, 4, H, W], the wanted frames where they are known, and a guess elsewhere.
        known: [N, 4, h', w'], with what quality, at `FINEST` pixels a place; 0 where no picture shows it.
        latents: [N, C, h, w] of `frames`, and `guessed` [N, 1, h, w], the share of each that no picture shows.
        inverse_depth, measured: [N, k, l] of the last frame, in 1/steps, and where pictures' points gave it.
    """

    @torch.no_grad()
    def __init__(
        self, autoencoder: TinyAutoencoder, pictures: Tensor, inverse_depth: Tensor, here: Tensor, there: Tensor, quality: Tensor,
        focal: float, mirrors: Mirrors | None = None,
    ) -> None:  # fmt: skip
        self.autoencoder = autoencoder
        n, k = pictures.shape[:2]
        turn, move = relative(here.unsqueeze(2), there.unsqueeze(1))  # N K 4 ...
        t = TEMPORAL_STRIDE
        weight = weighed(quality)[:, :, None, None, None]
        # how far away things are from the new poses
        points = inverse_depth.flatten(0, 1).repeat_interleave(t, 0)
        seen, there_is = (x.unflatten(0, (n, k, t)) for x in splat(turn.flatten(0, 2), move.flatten(0, 2), points, focal))
        counts = there_is * weight
        total = counts.sum(1)
        near, there_is = (seen * counts).sum(1) / total.clamp_min(1e-30), total > 0
        if mirrors is not None:
            mirrored = mirrors.stand(there_is[:, -1], fill(near[:, -1], there_is[:, -1].to(near)))
            near, there_is = mirrored.depth(near, there_is)
        self.measured = there_is[:, -1]
        near = fill(near.flatten(0, 1), there_is.to(near).flatten(0, 1))
        near = near.unflatten(0, (n, t))
        self.inverse_depth = near[:, -1]

        size = pictures.shape[-2:]
        rays, half = pixel_rays(tuple(size), focal, str(pictures.device), pictures.dtype), tuple(x // FINEST for x in size)
        self.known, self.frames = near.new_empty(n, t, *half), pictures.new_empty(n, 3, t, *size)
        for row in range(n):  # one after the other, so that what is worked on stays in the processor's caches
            depths = finer(inverse_depth[row], half), finer(near[row], half)
            shows = true_shares(*depths, turn[row], move[row], focal, size[1] / size[0])
            self.known[row] = (shows * quality[row, :, None, None, None]).amax(0)
            pixels = finer(near[row], size).flatten(1)
            self.frames[row], unknown = put_together(pictures[row], rays, pixels, turn[row], move[row], shows * weight[row], focal)
            if mirrors is not None:
                mirrored.paint(row, self.frames[row], unknown, rays, pixels)
        self.latents = autoencoder.encode(self.frames, grouped=True)[:, :, 0]
        self.guessed = F.adaptive_avg_pool2d((self.known == 0).to(near).mean(1, keepdim=True), self.latents.shape[-2:])

    def depth_of(self, latents: Tensor) -> Tensor:
        """Inverse depth [N, k, l] of the last pictures of new latent frames [N, C, h, w]: carried over where pictures' points gave it, so
        that a wall stays where it was however little its picture says at the end; elsewhere as their own pictures tell."""
        return torch.where(self.measured, self.inverse_depth, depth_of(self.autoencoder, latents))

    @classmethod
    def together(cls, views: Sequence[CameraView]) -> CameraView:
        """The views of several sequences as one, in their order."""
        joined = copy.copy(views[0])
        for name in ("frames", "known", "latents", "guessed", "inverse_depth", "measured"):
            setattr(joined, name, torch.cat([getattr(view, name) for view in views]))
        return joined


def finer(values: Tensor, size: tuple[int, int]) -> Tensor:
    """[M, h, w] in as many places as `size` says"""
    return values if values.shape[-2:] == size else F.interpolate(values.unsqueeze(1), size, mode="bilinear").squeeze(1)


def true_shares(inverse_depth: Tensor, near: Tensor, turn: Tensor, move: Tensor, focal: float, aspect: float) -> Tensor:
    """How far each of K pictures shows what is there: [K, 4, h, w], from 0, outside of the picture or hidden in it, to 1.

    `inverse_depth` [K, h, w] of the pictures and `near` [4, h, w] of the frames wanted; `turn` [K, 4, 3, 3] and `move` [K, 4, 3].
    """
    k, t = turn.shape[:2]
    h, w = size = tuple(near.shape[-2:])
    rays, wanted = pixel_rays(size, focal, str(near.device), near.dtype), near.flatten(1)
    where, share = look_up(rays, turn, move, wanted.unsqueeze(1), focal, aspect)  # K 4 hw
    has = F.grid_sample(inverse_depth.unsqueeze(1), where.view(k, t * h, w, 2), padding_mode="border", align_corners=False)
    astray = (has.view(k, t, h * w) - wanted / share.clamp_min(0.05)).abs() * (move.norm(dim=-1, keepdim=True) * focal * w)
    astray = F.avg_pool2d(astray.view(k, t, h, w), 5, 1, 2, count_include_pad=False)
    return inside(where, share).view(k, t, h, w) * (2 - astray / ASTRAY).clamp(0, 1)


def put_together(
    pictures: Tensor, rays: Tensor, near: Tensor, turn: Tensor, move: Tensor, weight: Tensor, focal: float
) -> tuple[Tensor, Tensor]:
    """Four frames [3, 4, H, W] of K pictures [K, 3, H, W], and where none of them shows anything [4, H, W]: there, what is at the edge of
    the first.

    `rays` [HW, 3] go through the pixels, whose inverse depth is `near` [4, HW]; `turn` [K, 4, 3, 3] and `move` [K, 4, 3]; `weight` [K, 4,
    h, w], what each picture counts there.
    """
    height, width = size = pictures.shape[-2:]
    t = len(near)
    frames, total = pictures.new_zeros(3, t, height, width), pictures.new_full((t, height, width), NOTHING)
    for k, counts in enumerate(weight.flatten(1).amax(1).tolist()):
        if k and not counts:
            continue
        where, _ = look_up(rays, turn[k], move[k], near.unsqueeze(1), focal, width / height)  # 4 HW 2
        where = where.view(1, t * height, width, 2)
        colours = F.grid_sample(pictures[k : k + 1], where, padding_mode="border", align_corners=False).view(3, t, height, width)
        share = finer(weight[k], size)
        frames.addcmul_(colours, share if k else share + NOTHING)
        total += share
    return frames / total, total == NOTHING


def depth_of(autoencoder: TinyAutoencoder, latents: Tensor) -> Tensor:
    """Inverse depth [N, k, l] in 1/steps of the last pictures of latent frames [N, C, h, w], as the pictures alone tell"""
    return autoencoder.inverse_depth(autoencoder.last_picture(latents)).squeeze(1)


def toned(pictures: Tensor, change: Tensor, codes: Tensor, focal: float) -> Tensor:
    """Pictures [M, 3, H, W] in -1..1 under a change of tone [M, BANDS, 3], seen from the poses `codes` [M, 9].

    `focal` is focal length over width. Bands are those of a level picture, wherever the camera looks: what is up is told by the pose.
    """
    rows = change.flatten(1).abs().amax(1) > 0
    if not rows.any():
        return pictures
    height, width = pictures.shape[-2:]
    rays = pixel_rays((height, width), focal, str(pictures.device), pictures.dtype)
    down = F.normalize(rays, dim=-1) @ rotation_and_position(codes[rows])[0][:, 1].unsqueeze(-1)  # M HW 1
    slope = (torch.arange(BANDS, device=pictures.device) + 0.5 - BANDS / 2) / BANDS * height / (focal * width)
    centres = slope / (1 + slope.square()).sqrt()  # sines of the angles down to the bands' centres
    apart = F.pad(centres.diff(), (1, 1), value=torch.inf)  # the outer bands go on beyond the picture
    off = down - centres
    weight = (1 - torch.where(off < 0, -off / apart[:-1], off / apart[1:])).clamp_min(0)  # 1 in all
    exponent = (weight @ change[rows].to(weight)).exp()  # M HW 3
    exponent = exponent.transpose(1, 2).unflatten(2, (height, width))
    out = pictures.clone()
    out[rows] = ((pictures[rows] + 1) / 2).clamp(0, 1) ** exponent * 2 - 1
    return out


def from_latents(autoencoder: TinyAutoencoder, latents: Tensor) -> Remembered:
    """What is remembered as latents [B, C, S, h, w], with depth as each picture alone tells."""
    by_frame = latents.transpose(1, 2).flatten(0, 1)

    def remembered(which: Tensor) -> tuple[Tensor, Tensor]:
        pictures = autoencoder.last_picture(by_frame[which])
        return pictures, autoencoder.inverse_depth(pictures).squeeze(1)

    return remembered


def next_view(
    autoencoder: TinyAutoencoder, remembered: Remembered, size: tuple[int, int], here: Tensor, there: Tensor, index: Tensor, pictures: int,
    focal: float, change: Tensor | None = None,
) -> CameraView | None:  # fmt: skip
    """The views of a chunk from at most `pictures` of the latent frames that are remembered; None without a focal length.

    `remembered` gives pictures of (height, width) `size`, the last one of each sequence that before the chunk, pose codes `here` [B, S,
    9] of their last video frames, `index` [S], when they were; `there` [B, 4t, 9], the poses of the chunk's frames; `change` [B, S,
    BANDS, 3] of their tone, if there is any (`toned`).
    """
    if not focal:
        return None
    t, s = there.shape[1] // TEMPORAL_STRIDE, here.shape[1]
    there = there.unflatten(1, (t, TEMPORAL_STRIDE)).flatten(0, 1)
    here = here.repeat_interleave(t, dim=0)
    last = torch.full((len(here),), s - 1, device=here.device)
    allowed = torch.ones(len(here), s, dtype=torch.bool, device=here.device)
    return _view(autoencoder, remembered, size, here, there, index.to(here.device), allowed, last, pictures, focal, t, change)


def start_view(autoencoder: TinyAutoencoder, start: Tensor, poses: Tensor, focal: float) -> CameraView | None:
    """The views of latent frames 1..T-1 from the start picture [B, C, 1, h, w] alone, for models that see a sequence all at once."""
    if not focal:
        return None
    size = picture_size(autoencoder, start)
    return next_view(autoencoder, from_latents(autoencoder, start), size, poses[:, :1], poses[:, 1:], torch.zeros(1), 1, focal)


def picture_size(autoencoder: TinyAutoencoder, latents: Tensor) -> tuple[int, int]:
    """Height and width of the pictures of latents [..., h, w]"""
    height, width = latents.shape[-2:]
    return height * autoencoder.spatial_stride, width * autoencoder.spatial_stride


def sequence_view(
    autoencoder: TinyAutoencoder, latents: Tensor, poses: Tensor, chunk: int, memory: MemoryConfig, pictures: int, focal: float,
    last: int | None = None,
) -> CameraView | None:  # fmt: skip
    """The views of latent frames 1..T-1 of a sequence, each as `next_view` gives it in a roll-out; None without a focal length.

    latents [B, C, T, h, w]; pose codes [B, 1 + 4(T-1), 9]; `last`: of the last so many latent frames only.
    """
    if not focal:
        return None
    b, t = len(latents), latents.shape[2] - 1
    index = torch.arange(t, device=poses.device)
    wanted = index if last is None else index[t - last :]
    before = wanted // chunk * chunk  # latent frame before the chunk of latent frame 1 + i
    allowed = torch.stack([memory.remembers(index, int(c) + 1, chunk) for c in before])  # wanted t
    here = poses[:, : TEMPORAL_STRIDE * t : TEMPORAL_STRIDE].repeat_interleave(len(wanted), dim=0)
    there = poses[:, 1:].unflatten(1, (t, TEMPORAL_STRIDE))[:, wanted].flatten(0, 1)
    remembered, size, each = from_latents(autoencoder, latents[:, :, :-1]), picture_size(autoencoder, latents), len(wanted)
    return _view(autoencoder, remembered, size, here, there, index, allowed.repeat(b, 1), before.repeat(b), pictures, focal, each)


@torch.no_grad()
def _view(
    autoencoder: TinyAutoencoder, remembered: Remembered, size: tuple[int, int], here: Tensor, there: Tensor, index: Tensor,
    allowed: Tensor, last: Tensor, pictures: int, focal: float, each: int, change: Tensor | None = None,
) -> CameraView:  # fmt: skip
    """The views from `there` [N, 4, 9] of the pictures that `choose_pictures` takes, and of their mirrors; N is `each` a sequence."""
    count = here.shape[1]
    picks, quality = choose_pictures(here, there[:, -1], index, allowed, last, min(pictures, count), focal, size)
    row = torch.arange(len(here), device=picks.device) // each

    def shown(picks: Tensor) -> tuple[Tensor, Tensor]:
        which, at = (row[:, None] * count + picks).unique(return_inverse=True)  # each latent frame once
        shots, depth = remembered(which)
        if change is not None:
            codes = here[::each].flatten(0, 1)[which]
            shots = toned(shots.to(codes), change.flatten(0, 1)[which], codes, focal)
        return shots.to(here)[at], depth.to(here)[at]

    mirrors = Mirrors(here, there, index, allowed, weighed(fading(here, there[:, -1], index)), focal, size[1] / size[0], shown)
    chosen = here.gather(1, picks.unsqueeze(-1).expand(-1, -1, 9))
    return CameraView(autoencoder, *shown(picks), chosen, there, quality, focal, mirrors)


def to_patches(latents: Tensor, patch: tuple[int, int]) -> Tensor:
    """[N, C, h, w] -> [N, L, ph*pw*C], in the order of the transformer's output"""
    ph, pw = patch
    x = latents.unflatten(3, (-1, pw)).unflatten(2, (-1, ph))  # N C h ph w pw
    return x.permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2)


def from_patches(patches: Tensor, grid: tuple[int, int], patch: tuple[int, int]) -> Tensor:
    """The inverse of `to_patches`; `grid` is (h / ph, w / pw)"""
    x = patches.unflatten(2, (*patch, -1)).unflatten(1, grid)  # N h w ph pw C
    return x.permute(0, 5, 1, 3, 2, 4).flatten(4, 5).flatten(2, 3)


class ViewBlend(nn.Module):
    """Shows a `CameraView` to the transformer, and puts it into what comes out.

    Tokens are told the view's latents and, in `CELLS` x `CELLS` cells of every frame, with what quality it is known.
    """

    def __init__(self, dim: int, channels: int, patch: tuple[int, int] = (1, 1)) -> None:
        super().__init__()
        self.patch = patch
        latents = patch[0] * patch[1]
        self.enter = nn.Linear(channels * latents, dim)
        self.enter_reach = nn.Linear(TEMPORAL_STRIDE * CELLS**2 * latents, dim, bias=False)
        self.gate = nn.Linear(dim, channels * latents)
        for layer in self.children():
            nn.init.zeros_(layer.weight)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
        nn.init.constant_(self.gate.bias, 2.0)

    def tokens(self, view: CameraView) -> Tensor:
        """What the view adds to the embedded tokens: [N, L, D]"""
        h, w = view.latents.shape[-2:]
        reach = F.pixel_unshuffle(F.adaptive_avg_pool2d(view.known, (CELLS * h, CELLS * w)), CELLS)
        shown, reach = (to_patches(x, self.patch).to(self.enter.weight) for x in (view.latents, reach))
        return self.enter(shown) + self.enter_reach(reach)

    def forward(self, hidden: Tensor, out: Tensor, view: CameraView) -> Tensor:
        """hidden [N, L, D], prediction [N, L, ph*pw*C] -> the prediction, changed to the view's latents as far as its gate is open, and
        wholly where the view is a guess: the mean of all that may be there is fog"""
        latents = len(view.latents[0])
        gate = torch.sigmoid(self.gate(hidden))
        guessed = to_patches(view.guessed, self.patch).to(gate).repeat_interleave(latents, -1)
        return torch.lerp(out, to_patches(view.latents, self.patch).to(out), torch.maximum(gate, guessed))
