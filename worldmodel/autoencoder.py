"""Pixels <-> latents, whole clips or chunk by chunk.

Both autoencoders here are causal in time: the first latent frame stands for one video frame, each later one for
`temporal_stride` frames, so ``1 + 4k`` frames are ``1 + k`` latent frames. Video is float [B, 3, F, H, W] in -1..1, latents
are float [B, C, T, h, w], normalised by per-channel mean and scale. Streaming decode equals whole-clip decode.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKLWan, ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn

from worldmodel.cpu_convolution import fast_conv3d
from worldmodel.depth import PictureDepth

TEMPORAL_STRIDE = 4


class VideoAutoencoder(ABC):
    """What the rest of the package asks of an autoencoder."""

    latent_channels: int
    spatial_stride: int
    temporal_stride: int = TEMPORAL_STRIDE

    @property
    def channel_gain(self) -> Tensor:
        """[C]: how much one unit of each normalised latent channel changes the picture, up to a common factor"""
        return torch.ones(self.latent_channels)

    @abstractmethod
    def encode(self, video: Tensor) -> Tensor:
        """[B, 3, 1+4k, H, W] -> normalised latents [B, C, 1+k, H/stride, W/stride]"""

    @abstractmethod
    def decode_chunk(self, latents: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        """Decode the next latent frames of a stream: [B, C, t, h, w] -> video, new state.

        ``state=None`` starts a stream, whose first latent frame gives one video frame. A state is never changed in place,
        so keeping an old one is enough to go back.
        """

    def decode(self, latents: Tensor) -> Tensor:
        """[B, C, 1+k, h, w] -> video [B, 3, 1+4k, H, W]"""
        return self.decode_chunk(latents)[0]

    def advance(self, latents: Tensor, state: Any = None) -> Any:
        """The state after decoding the next latent frames; cheaper where the frames are not needed to know it."""
        return self.decode_chunk(latents, state)[1]


class ResidualBlock(nn.Module):
    """x + conv(silu(conv(silu(x)))), the last convolution starting at zero."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, width, 3, padding=1)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)
        nn.init.zeros_(self.conv2.weight)
        nn.init.zeros_(self.conv2.bias)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv2(F.silu(self.conv1(F.silu(x))))


class TinyAutoencoder(ModelMixin, ConfigMixin, VideoAutoencoder):
    """A small video autoencoder: a linear code of 16x16x4 pixel patches, decoded by its transpose and, if wanted, a residual network.

    Every group of four frames becomes one latent frame at 1/16 of the resolution. The code is the patch's principal components
    (`init_linear_code`) and is never trained further, so distances between latents are distances between pictures
    (`channel_gain`), and a better decoder never makes encoded clips or a trained world model useless. The network adds what a
    linear code cannot: edges across patches and detail that the latent frame before already showed, which is all the state that
    a stream needs.

    Args:
        latent_channels: components of the code.
        decoder_widths: channels of the network at `decoder_stride` and at 16 pixels a place; empty: the code alone decodes.
        decoder_stride: pixels a place and axis of the network; 4, 8 or 16.
        decoder_blocks: its residual blocks.
        depth_widths: of the `PictureDepth` that tells how far away things are, for camera views; empty: there is none.
        depth_pool: of the same.
    """

    spatial_stride = 16

    @register_to_config
    def __init__(
        self,
        latent_channels: int = 384,
        decoder_widths: tuple[int, ...] = (96, 160),
        decoder_stride: int = 8,
        decoder_blocks: int = 3,
        depth_widths: tuple[int, ...] = (),
        depth_pool: int = 1,
    ) -> None:
        super().__init__()
        if decoder_stride not in (4, 8, 16):
            raise ValueError(f"decoder_stride is 4, 8 or 16, got {decoder_stride}.")
        if len(decoder_widths) not in (0, 2):
            raise ValueError(f"decoder_widths are two numbers, or none, got {tuple(decoder_widths)}.")
        self.latent_channels, self.decoder_stride = latent_channels, decoder_stride
        pixels = 3 * TEMPORAL_STRIDE
        self.linear_encoder = nn.Conv2d(pixels, latent_channels, 16, stride=16)
        self.refine: nn.Module | None = None
        if decoder_widths:
            fine, low = decoder_widths
            finer = self.spatial_stride // decoder_stride
            self.refine_latents = nn.Sequential(
                nn.Conv2d(latent_channels * 2, low, 1), nn.SiLU(), nn.Conv2d(low, fine * finer**2, 1), nn.PixelShuffle(finer)
            )
            self.refine_picture = nn.Conv2d(pixels * decoder_stride**2, fine, 1)
            self.refine = nn.Sequential(*[ResidualBlock(fine) for _ in range(decoder_blocks)])
            self.refine_out = nn.Conv2d(fine, pixels * decoder_stride**2, 1)
            nn.init.zeros_(self.refine_out.weight)
            nn.init.zeros_(self.refine_out.bias)
        self.depth = PictureDepth(tuple(depth_widths), depth_pool) if depth_widths else None
        self.register_buffer("code_gain", 1 / self.linear_encoder.weight.detach().flatten(1).square().sum(1))
        self.register_buffer("latents_mean", torch.zeros(1, latent_channels, 1, 1, 1))
        self.register_buffer("latents_std", torch.ones(1, latent_channels, 1, 1, 1))

    # -- groups of four frames: [N, 12, H, W] <-> [N, C, h, w], raw latents -------------------------------------------------
    def _analyse(self, groups: Tensor) -> Tensor:
        """`linear_encoder` without its bias: a product of matrices, faster than the convolution that it is"""
        size = self.spatial_stride
        patches = groups.unflatten(3, (-1, size)).unflatten(2, (-1, size)).permute(0, 2, 4, 1, 3, 5).flatten(3)  # N h w p
        return (patches @ self.linear_encoder.weight.flatten(1).T).permute(0, 3, 1, 2).contiguous()

    def _synthesise(self, latents: Tensor, frames: slice = slice(None)) -> Tensor:
        """Pixels of raw latents [N, C, h, w], of some of the group's channels: the transposed code"""
        weight, size = self.linear_encoder.weight[:, frames], self.spatial_stride
        components = (latents - self.linear_encoder.bias[:, None, None]) * self.code_gain[:, None, None]
        patches = components.permute(0, 2, 3, 1) @ weight.flatten(1)  # N h w p
        return patches.unflatten(3, (-1, size, size)).permute(0, 3, 1, 4, 2, 5).flatten(4).flatten(2, 3)

    def encode_groups(self, groups: Tensor) -> Tensor:
        return self._analyse(groups.to(self.linear_encoder.weight)) + self.linear_encoder.bias[:, None, None]

    def decode_groups(self, latents: Tensor, previous: Tensor) -> Tensor:
        picture = self._synthesise(latents)
        if self.refine is None:
            return picture
        stride = self.decoder_stride
        x = self.refine_latents(torch.cat([latents, previous], dim=1)) + self.refine_picture(F.pixel_unshuffle(picture, stride))
        return picture + F.pixel_shuffle(self.refine_out(self.refine(x)), stride)

    @property
    def channel_gain(self) -> Tensor:
        """[C]: root of the sum of squares by which a patch changes for one unit of each normalised latent"""
        return self.latents_std.flatten() * self.code_gain.sqrt()

    # -- video -----------------------------------------------------------------------------------------------------------
    def encode_raw(self, video: Tensor) -> Tensor:
        """[B, 3, 1+4k, H, W] -> latents [B, C, 1+k, h, w] before normalisation"""
        b, _, frames, height, width = video.shape
        if frames % TEMPORAL_STRIDE != 1:
            raise ValueError(f"A clip has 1 + 4k frames (1, 5, 9, ...), got {frames}.")
        if height % self.spatial_stride or width % self.spatial_stride:
            raise ValueError(f"Height and width are multiples of {self.spatial_stride}, got {height}x{width}.")
        padded = torch.cat([video[:, :, :1].expand(-1, -1, TEMPORAL_STRIDE - 1, -1, -1), video], dim=2)
        t = padded.shape[2] // TEMPORAL_STRIDE
        groups = padded.unflatten(2, (t, TEMPORAL_STRIDE)).permute(0, 2, 1, 3, 4, 5)  # B T 3 4 H W
        latents = self.encode_groups(groups.reshape(b * t, 3 * TEMPORAL_STRIDE, height, width))
        return latents.unflatten(0, (b, t)).transpose(1, 2)

    def encode(self, video: Tensor, grouped: bool = False) -> Tensor:
        """As `VideoAutoencoder.encode`; with `grouped`, video [B, 3, 4, H, W] is one group from the middle of a stream."""
        raw = self.encode_groups(video.flatten(1, 2)).unsqueeze(2) if grouped else self.encode_raw(video)
        return (raw - self.latents_mean) / self.latents_std

    def linear_frames(self, latents: Tensor) -> Tensor:
        """Four video frames [B, 3, 4, H, W] of one latent frame [B, C, h, w], by the linear code alone"""
        raw = latents * self.latents_std[:, :, 0] + self.latents_mean[:, :, 0]
        return self._synthesise(raw).unflatten(1, (3, TEMPORAL_STRIDE))

    def last_picture(self, latents: Tensor) -> Tensor:
        """Last of the `linear_frames`, clamped: [B, 3, H, W]"""
        raw = latents * self.latents_std[:, :, 0] + self.latents_mean[:, :, 0]
        return self._synthesise(raw, slice(TEMPORAL_STRIDE - 1, None, TEMPORAL_STRIDE)).clamp(-1, 1)

    def inverse_depth(self, pictures: Tensor) -> Tensor:
        """Of what pictures [N, 3, H, W] show, in 1/steps: [N, 1, h, w] (`PictureDepth`); raises ValueError where no depth was trained"""
        if self.depth is None:
            raise ValueError("This autoencoder knows no depth, which camera views need: train one with depth_widths.")
        return self.depth(pictures)

    def decode_raw(self, latents: Tensor, previous: Tensor | None = None) -> Tensor:
        """Raw latents [B, C, t, h, w] -> groups [B, 3, t, 4, H, W]; `previous` [B, C, h, w] is None at a stream's start."""
        b, _, t = latents.shape[:3]
        first = latents[:, :, :1] if previous is None else previous.unsqueeze(2)
        before = torch.cat([first, latents[:, :, :-1]], dim=2)
        flat = [x.transpose(1, 2).flatten(0, 1) for x in (latents, before)]
        return self.decode_groups(*flat).unflatten(0, (b, t)).unflatten(2, (3, TEMPORAL_STRIDE)).transpose(1, 2)

    def decode_chunk(self, latents: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
        raw = latents * self.latents_std + self.latents_mean
        groups = self.decode_raw(raw, state)  # B 3 t 4 H W
        video = groups.flatten(2, 3)
        return (video[:, :, TEMPORAL_STRIDE - 1 :] if state is None else video), raw[:, :, -1]

    def advance(self, latents: Tensor, state: Tensor | None = None) -> Tensor:
        return (latents * self.latents_std + self.latents_mean)[:, :, -1]

    def with_depth(self, depth: PictureDepth) -> TinyAutoencoder:
        """A copy that tells depth as `depth` does"""
        config = {k: v for k, v in self.config.items() if not k.startswith("_")}
        made = TinyAutoencoder(**config | {"depth_widths": depth.widths, "depth_pool": depth.pool})
        mine = {k: v for k, v in self.state_dict().items() if not k.startswith("depth.")}
        made.load_state_dict(mine | {f"depth.{k}": v for k, v in depth.state_dict().items()})
        return made

    # -- making one --------------------------------------------------------------------------------------------------------
    @torch.no_grad()
    def init_linear_code(self, groups: Tensor) -> None:
        """Set both linear codes to the principal components of pixel patches of `groups` [N, 12, H, W]."""
        size, count = self.linear_encoder.weight[0].numel(), 0
        total, second = torch.zeros(size, dtype=torch.float64), torch.zeros(size, size, dtype=torch.float64)
        for part in groups.split(32):
            patches = F.unfold(part, 16, stride=16).transpose(1, 2).flatten(0, 1)  # [n*h*w, 12*256]
            count += len(patches)
            total += patches.sum(0)
            second += patches.T @ patches
        mean = total / count
        variance, vectors = torch.linalg.eigh(second / count - torch.outer(mean, mean))
        top = torch.arange(len(variance) - 1, len(variance) - 1 - self.latent_channels, -1)
        scale = variance[top].clamp_min(1e-8).pow(0.25)  # half-way to whitening: detail is neither lost nor blown up
        analysis = (vectors[:, top] / scale).T  # [C, 3072], of length 1 / scale: its transpose, times scale^2, is the synthesis
        self.linear_encoder.weight.copy_(analysis.reshape(self.linear_encoder.weight.shape))
        self.linear_encoder.bias.copy_(-(analysis @ mean))
        self.code_gain.copy_(scale**2)

    def set_latent_statistics(self, mean: Tensor, std: Tensor) -> None:
        """Fix the normalisation of latents, per channel [C]; saved with the weights."""
        self.latents_mean.copy_(mean.view(1, -1, 1, 1, 1))
        self.latents_std.copy_(std.view(1, -1, 1, 1, 1))


class WanAutoencoder(VideoAutoencoder):
    """Wan 2.1's autoencoder behind the same interface, streaming.

    `AutoencoderKLWan.decode` forgets its causal cache between calls; here the cache of every causal convolution is the
    stream's state, which makes chunked decode bit-exact with whole-clip decode. Latent frames are decoded one by one.
    """

    spatial_stride = 8

    def __init__(self, vae: AutoencoderKLWan) -> None:
        self.vae = vae.eval()
        self.latent_channels = vae.config.z_dim
        shape = (1, -1, 1, 1, 1)
        self.mean = torch.tensor(vae.config.latents_mean).view(shape)
        self.std = torch.tensor(vae.config.latents_std).view(shape)

    @torch.no_grad()
    def encode(self, video: Tensor) -> Tensor:
        with fast_conv3d(video.device):
            latents = self.vae.encode(video).latent_dist.mode()
        return (latents - self.mean.to(latents)) / self.std.to(latents)

    @torch.no_grad()
    def decode_chunk(self, latents: Tensor, state: list | None = None) -> tuple[Tensor, list]:
        z = self.vae.post_quant_conv(latents * self.std.to(latents) + self.mean.to(latents))
        cache = [None] * self.vae._cached_conv_counts["decoder"] if state is None else list(state)
        frames = []
        with fast_conv3d(z.device):
            for i in range(z.shape[2]):
                frames.append(self.vae.decoder(z[:, :, i : i + 1], feat_cache=cache, feat_idx=[0], first_chunk=state is None and i == 0))
        video = torch.cat(frames, dim=2)
        if (patch := self.vae.config.patch_size) is not None:
            from diffusers.models.autoencoders.autoencoder_kl_wan import unpatchify

            video = unpatchify(video, patch_size=patch)
        return video.clamp(-1.0, 1.0), cache
