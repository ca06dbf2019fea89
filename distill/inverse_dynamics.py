"""The camera's motion and the held controls, read from two pictures by a small network (inverse dynamics).

Dense optical flow between the pictures, there and back (OpenCV's DIS), says how things moved; convolutions over it, beside where
it can be trusted and how the pictures look, give the motion and the controls. `python -m distill.inverse_dynamics` trains it in
minutes on one core, on rendered walks (`python -m distill.scenes`; docs/evaluation.md has the commands). Pictures are softened, recoloured
and disturbed in training, because generated video is soft.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import files
from pathlib import Path

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from distill.scenes import FOV
from worldmodel.actions import NUM_ACTIONS, ROTATION_UNIT_DEG, STATIC
from worldmodel.camera import intrinsics_from_fov

WEIGHTS = "weights/inverse_dynamics.safetensors"
WINDOW = 4
"""Frames between the two pictures."""
_UNITS = (*(np.deg2rad(ROTATION_UNIT_DEG) * WINDOW,) * 3, *(float(WINDOW),) * 3)  # one control held throughout is 1
_BACK = [i for pair in range(0, STATIC, 2) for i in (pair + 1, pair)] + [STATIC]  # the control that undoes each
_MIRROR = [0, 1, 3, 2, 4, 5, 6, 7, 9, 8, 11, 10, 12]  # the control seen in a mirror
_CHANNELS = 7  # of each picture: flow to the other (2), mismatch on the way back, contrast, colour (3)


@dataclass(frozen=True)
class InverseDynamicsConfig:
    """Sizes of the network; pictures are `size` x `size` pixels, cells four pixels wide."""

    size: int = 64
    widths: tuple[int, int, int] = (48, 64, 96)
    mixed: int = 128


class InverseDynamics(nn.Module):
    """Flow fields to the motion (6: rotation vector, translation; in units of one control held throughout) and logits of 13 controls."""

    def __init__(self, config: InverseDynamicsConfig | None = None) -> None:
        super().__init__()
        self.config = c = config or InverseDynamicsConfig()
        a, b, d = c.widths
        side = c.size // 4
        at = torch.linspace(-1, 1, side)
        self.register_buffer("grid", torch.stack(torch.meshgrid(at, at, indexing="ij")), persistent=False)  # [2, side, side]
        self.layers = nn.Sequential(
            nn.Conv2d(2 * _CHANNELS + 2, a, 3, padding=1), nn.SiLU(), nn.Conv2d(a, b, 3, 2, 1), nn.SiLU(),
            nn.Conv2d(b, b, 3, padding=1), nn.SiLU(), nn.Conv2d(b, d, 3, 2, 1), nn.SiLU(),
            nn.Flatten(), nn.Linear(d * (side // 4) ** 2, c.mixed), nn.SiLU(), nn.Linear(c.mixed, 6 + NUM_ACTIONS),
        )  # fmt: skip

    def forward(self, fields_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        out = self.layers(torch.cat([fields_BCHW, self.grid.expand(len(fields_BCHW), -1, -1, -1)], 1))
        return out[:, :6], out[:, 6:]

    @torch.no_grad()
    def read(self, frames: np.ndarray, intrinsics: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Motion and controls in every window of `WINDOW` frames of a video.

        The answer is the mean over both directions of time and over the mirror image, so a picture that stands still reads as
        exactly no motion.

        Args:
            frames: uint8 [T, H, W, 3].
            intrinsics: [4] fx/W, fy/H, cx/W, cy/H.

        Returns:
            (motion float64 [N, 4, 4] with ``C_after = C_before @ motion``, translation in steps as the network learnt them;
            probabilities float64 [N, 13] of the controls of `worldmodel.actions.ACTION_NAMES`), N = (T - 1) // WINDOW.

        Raises:
            ValueError: the video is shorter than a window.
        """
        if len(frames) <= WINDOW:
            raise ValueError(f"Reading motion takes {WINDOW + 1} frames or more, got {len(frames)}.")
        pictures = view(frames[: (len(frames) - 1) // WINDOW * WINDOW + 1 : WINDOW], intrinsics, self.config.size)
        plain = torch.from_numpy(np.stack([fields(a, b) for a, b in zip(pictures[:-1], pictures[1:], strict=True)])).float()
        motion, logits = torch.zeros(len(plain), 6), torch.zeros(len(plain), NUM_ACTIONS)
        for mirrored in (False, True):
            for back in (False, True):
                x = mirror_fields(plain) if mirrored else plain
                moved, pressed = self(reverse_fields(x) if back else x)
                moved, pressed = (reverse(moved), pressed[:, _BACK]) if back else (moved, pressed)
                moved, pressed = (mirror(moved), pressed[:, _MIRROR]) if mirrored else (moved, pressed)
                motion, logits = motion + moved / 4, logits + pressed / 4
        seen = motion.double().numpy() * _UNITS
        poses = np.tile(np.eye(4), (len(seen), 1, 1))
        for pose, row in zip(poses, seen, strict=True):
            pose[:3, :3], pose[:3, 3] = cv2.Rodrigues(row[:3])[0], row[3:]
        return poses, logits.double().sigmoid().numpy()


def fields(before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """What the network is given of two pictures uint8 [size, size, 3]: float32 [14, size / 4, size / 4], first picture then second"""
    greys = [cv2.cvtColor(p, cv2.COLOR_RGB2GRAY) for p in (before, after)]
    dis = _flow()
    flows = [dis.calc(greys[0], greys[1], None), dis.calc(greys[1], greys[0], None)]
    size = len(before)
    at = np.stack(np.meshgrid(np.arange(size), np.arange(size)), -1).astype(np.float32)
    out = []
    for picture, grey, there, back in zip((before, after), greys, flows, flows[::-1], strict=True):
        target = at + there
        mismatch = np.linalg.norm(there + cv2.remap(back, target, None, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE), axis=-1)
        slope = np.abs(cv2.Sobel(grey, cv2.CV_32F, 1, 0)) + np.abs(cv2.Sobel(grey, cv2.CV_32F, 0, 1))
        planes = np.dstack([there / 4, np.minimum(mismatch, 4), np.minimum(slope / 64, 4), picture / np.float32(255) - 0.5])
        out.append(cv2.resize(planes[..., :4], None, fx=0.25, fy=0.25, interpolation=cv2.INTER_AREA))
        out.append(cv2.resize(planes[..., 4:], None, fx=0.25, fy=0.25, interpolation=cv2.INTER_AREA))
    return np.ascontiguousarray(np.concatenate(out, -1).transpose(2, 0, 1))


@lru_cache(maxsize=1)
def _flow():
    flow = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_ULTRAFAST)
    flow.setFinestScale(0)
    return flow


def reverse_fields(x_BCHW: Tensor) -> Tensor:
    """The fields with both pictures exchanged"""
    return torch.cat([x_BCHW[:, _CHANNELS:], x_BCHW[:, :_CHANNELS]], 1)


def mirror_fields(x_BCHW: Tensor) -> Tensor:
    """The fields with left for right"""
    sign = x_BCHW.new_tensor([-1, *[1] * (_CHANNELS - 1)]).repeat(2)
    return x_BCHW.flip(3) * sign[:, None, None]


def mirror(motion: Tensor) -> Tensor:
    """The motion [..., 6] (rotation vector, translation) that pictures swapped left for right show"""
    return motion * motion.new_tensor([1, -1, -1, -1, 1, 1])


def reverse(motion: Tensor) -> Tensor:
    """The motion [..., 6] from the second picture to the first: ``-r`` and ``-R^T t``, in units of one control"""
    r, t = motion[..., :3] * _UNITS[0], motion[..., 3:]
    angle = r.norm(dim=-1, keepdim=True)
    axis = r / angle.clamp_min(1e-9)
    turned = t * angle.cos() - torch.linalg.cross(axis, t) * angle.sin() + axis * (axis * t).sum(-1, keepdim=True) * (1 - angle.cos())
    return torch.cat([-motion[..., :3], -turned], -1)


def view(frames: np.ndarray, intrinsics: np.ndarray, size: int) -> np.ndarray:
    """Frames uint8 [T, H, W, 3] as the network's camera sees them: uint8 [T, size, size, 3], 70 degrees wide, grey where nothing is"""
    height, width = frames.shape[1:3]
    fx, fy, cx, cy = (float(v) for v in intrinsics)
    focal = float(intrinsics_from_fov(FOV, (size, size))[0]) * size
    inner = (max(round(width * focal / (fx * width)), 1), max(round(height * focal / (fy * height)), 1))  # the whole picture there
    shift = np.float32([[1, 0, size / 2 - cx * inner[0]], [0, 1, size / 2 - cy * inner[1]]])
    out = np.empty((len(frames), size, size, 3), np.uint8)
    for to, frame in zip(out, frames, strict=True):
        small = cv2.resize(frame, inner, interpolation=cv2.INTER_AREA if inner[0] < width else cv2.INTER_LINEAR)
        to[:] = cv2.warpAffine(small, shift, (size, size), borderValue=(128, 128, 128))
    return out


@lru_cache(maxsize=1)
def load() -> InverseDynamics:
    """The network with its packaged weights, on the CPU."""
    from safetensors.torch import load as load_tensors

    weights = load_tensors((files("distill") / WEIGHTS).read_bytes())
    model = InverseDynamics().eval().requires_grad_(False)
    model.load_state_dict({name: value.float() for name, value in weights.items()})
    return model


# -- training ----------------------------------------------------------------------------------------------------------
def read_walks(folder: Path, samples: int, rng: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Windows drawn from all clips, most of them disturbed: fields float16 [N, 14, h, w], motions [N, 6], shares held [N, 13]"""
    from tqdm import tqdm

    from distill.dataset import read_clip, stems
    from distill.scenes import check_trainable

    clips = stems(folder)
    if not clips:
        raise ValueError(f"There are no clips in {folder}: render some with python -m distill.scenes --size 64.")
    each = -(-samples // len(clips))
    inputs, motions, held = [], [], []
    for stem in tqdm(clips, desc="flow", unit="clip"):
        clip = read_clip(stem)
        check_trainable(clip.seed, clip.start)
        at = torch.randint(len(clip) - WINDOW, (each,), generator=rng).numpy()
        poses = clip.camera_to_world.astype(np.float64)
        relative = np.linalg.inv(poses[at]) @ poses[at + WINDOW]
        turned = np.stack([cv2.Rodrigues(r)[0][:, 0] for r in relative[:, :3, :3]])
        motions.append(np.concatenate([turned, relative[:, :3, 3] / clip.step], 1) / _UNITS)
        held.append([(clip.actions[t + 1 : t + 1 + WINDOW] > 0).mean(0) for t in at])
        size = InverseDynamicsConfig().size
        pairs = [torch.from_numpy(view(clip.frames[i], clip.intrinsics, size)).permute(0, 3, 1, 2) / 255 for i in (at, at + WINDOW)]
        pairs = [torch.cat([plain[: each // 4], soft[each // 4 :]]) for plain, soft in zip(pairs, disturb(*pairs, rng), strict=True)]
        before, after = ((p * 255).round().byte().permute(0, 2, 3, 1).contiguous().numpy() for p in pairs)
        inputs.append(np.stack([fields(a, b) for a, b in zip(before, after, strict=True)]).astype(np.float16))
    return torch.from_numpy(np.concatenate(inputs)), *(torch.from_numpy(np.concatenate(v)).float() for v in (motions, held))


def disturb(before: Tensor, after: Tensor, rng: torch.Generator) -> tuple[Tensor, Tensor]:
    """Pictures [B, 3, H, W] in 0..1 as generated video might show them: soft, noisy, flickering, recoloured, cut to other shapes"""

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(shape, generator=rng)

    batch, _, height, width = before.shape
    gain, bias = uniform(0.7, 1.3, batch, 3, 1, 1), uniform(-0.15, 0.15, batch, 3, 1, 1)
    out = []
    for pictures in (before, after):
        x = (pictures - 0.5) * gain * uniform(0.92, 1.08, batch, 1, 1, 1) + 0.5 + bias + uniform(-0.04, 0.04, batch, 3, 1, 1)
        x = torch.cat([_soften(part, rng) for part in x.split(max(batch // 8, 1))])
        blotches = torch.randn(batch, 3, 8, 8, generator=rng) * uniform(-0.06, 0.06, batch, 1, 1, 1).clamp_min(0)
        x = x + F.interpolate(blotches, (height, width), mode="bilinear")
        out.append(x + torch.randn(x.shape, generator=rng) * uniform(-0.05, 0.05, batch, 1, 1, 1).clamp_min(0))
    margin = (uniform(-0.8, 0.25, batch, 1, 1, 1).clamp_min(0) * height).round()  # one in four is wider than high
    row = torch.arange(height)[:, None]
    band = ((row >= margin) & (row < height - margin)).float()
    return tuple(x.clamp(0, 1) * band + 128 / 255 * (1 - band) for x in out)


def _soften(x: Tensor, rng: torch.Generator) -> Tensor:
    """Pictures shown at fewer pixels, down to a quarter on each side; half of the time as they are"""
    share = torch.rand(2, generator=rng)
    if share[0] < 0.4:
        return x
    small = int(x.shape[-1] * 4 ** -float(share[1]))
    return F.interpolate(F.interpolate(x, small, mode="bilinear", antialias=True), x.shape[-2:], mode="bicubic")


def losses(model: InverseDynamics, x_BCHW: Tensor, motion: Tensor, held: Tensor) -> tuple[Tensor, Tensor]:
    """Mean absolute error of the motion, rotation counted twice, and cross entropy of the controls"""
    seen, logits = model(x_BCHW)
    error = (seen - motion).abs().mean(0)
    return 2 * error[:3].mean() + error[3:].mean(), F.binary_cross_entropy_with_logits(logits, held)


def train(data: Path, out: Path, samples: int = 20_000, epochs: int = 14, batch: int = 128, rate: float = 2e-3, seed: int = 0) -> None:
    """Train on the clips of a folder and write the weights (float16 safetensors)."""
    from safetensors.torch import save_file
    from tqdm import tqdm

    torch.manual_seed(seed)
    rng = torch.Generator().manual_seed(seed)
    inputs, motions, held = read_walks(data, samples, rng)
    model = InverseDynamics()
    optimizer = torch.optim.AdamW(model.parameters(), rate, weight_decay=0.02)
    steps = epochs * (len(inputs) // batch)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, steps, pct_start=0.1)
    mean = np.zeros(2)
    with tqdm(total=steps, unit="step", desc="train") as bar:
        for step in range(steps):
            at = torch.randint(len(inputs), (batch,), generator=rng)
            x, motion, keys = inputs[at].float(), motions[at], held[at]
            if step % 2:
                x, motion, keys = reverse_fields(x), reverse(motion), keys[:, _BACK]
            if step % 4 > 1:
                x, motion, keys = mirror_fields(x), mirror(motion), keys[:, _MIRROR]
            moved, pressed = losses(model, x, motion, keys)
            optimizer.zero_grad()
            (moved + pressed).backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            mean += (np.array([moved.item(), pressed.item()]) - mean) / min(step + 1, 100)
            bar.update()
            bar.set_postfix(motion=f"{mean[0]:.3f}", keys=f"{mean[1]:.3f}", refresh=False)
    out.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: value.half().contiguous() for name, value in model.state_dict().items()}, out)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m distill.inverse_dynamics", description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of clips (python -m distill.scenes)")
    parser.add_argument("--out", type=Path, required=True, help="safetensors to write")
    parser.add_argument("--samples", type=int, default=20_000, help="windows drawn from the clips")
    parser.add_argument("--epochs", type=int, default=14)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    cv2.setNumThreads(args.threads)
    train(args.data, args.out, args.samples, args.epochs)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
