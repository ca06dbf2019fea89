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

TEMPORAL_STRIDE = 4


class VideoAutoencoder(ABC):
    """What the rest of the package asks of an autoencoder."""

    latent_channels: int
    spatial_stride: int
    temporal_stride: int = TEMPORAL_STRIDE

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
    """A small video autoencoder that learns the residual of a linear code.

    Every group of four frames becomes one latent frame at 1/16 of the resolution. The linear code is a strided convolution
    each way, started from the principal components of 16x16x4 pixel patches (`init_linear_code`), so training begins at the
    best linear compression and the networks add what is not linear. The decoder also sees the latent frame before, which is
    all the state that a stream needs.
    """

    spatial_stride = 16

    @register_to_config
    def __init__(
        self,
        latent_channels: int = 96,
        encoder_widths: tuple[int, int, int] = (64, 128, 160),
        decoder_widths: tuple[int, int, int] = (96, 160, 192),
        encoder_blocks: tuple[int, int, int] = (1, 1, 0),
        decoder_blocks: tuple[int, int, int] = (3, 2, 1),
    ) -> None:
        super().__init__()
        self.latent_channels = latent_channels
        pixels = 3 * TEMPORAL_STRIDE
        e, d = encoder_widths, decoder_widths
        self.linear_encoder = nn.Conv2d(pixels, latent_channels, 16, stride=16)
        self.encoder = nn.Sequential(
            nn.PixelUnshuffle(4), nn.Conv2d(pixels * 16, e[0], 1), *[ResidualBlock(e[0]) for _ in range(encoder_blocks[0])],
            nn.PixelUnshuffle(2), nn.Conv2d(e[0] * 4, e[1], 1), *[ResidualBlock(e[1]) for _ in range(encoder_blocks[1])],
            nn.PixelUnshuffle(2), nn.Conv2d(e[1] * 4, e[2], 1), *[ResidualBlock(e[2]) for _ in range(encoder_blocks[2])],
            nn.Conv2d(e[2], latent_channels, 1),
        )  # fmt: skip
        self.linear_decoder = nn.ConvTranspose2d(latent_channels, pixels, 16, stride=16)
        self.decoder = nn.Sequential(
            nn.Conv2d(latent_channels * 2, d[2], 3, padding=1), *[ResidualBlock(d[2]) for _ in range(decoder_blocks[2])],
            nn.Conv2d(d[2], d[1] * 4, 1), nn.PixelShuffle(2), *[ResidualBlock(d[1]) for _ in range(decoder_blocks[1])],
            nn.Conv2d(d[1], d[0] * 4, 1), nn.PixelShuffle(2), *[ResidualBlock(d[0]) for _ in range(decoder_blocks[0])],
            nn.Conv2d(d[0], pixels * 16, 1), nn.PixelShuffle(4),
        )  # fmt: skip
        for last in (self.encoder[-1], self.decoder[-2]):
            nn.init.zeros_(last.weight)
            nn.init.zeros_(last.bias)
        self.register_buffer("latents_mean", torch.zeros(1, latent_channels, 1, 1, 1))
        self.register_buffer("latents_std", torch.ones(1, latent_channels, 1, 1, 1))

    # -- groups of four frames: [N, 12, H, W] <-> [N, C, h, w], raw latents -------------------------------------------------
    def encode_groups(self, groups: Tensor) -> Tensor:
        return self.linear_encoder(groups) + self.encoder(groups)

    def decode_groups(self, latents: Tensor, previous: Tensor) -> Tensor:
        return self.linear_decoder(latents) + self.decoder(torch.cat([latents, previous], dim=1))

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

    def encode(self, video: Tensor) -> Tensor:
        return (self.encode_raw(video) - self.latents_mean) / self.latents_std

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

    # -- making one --------------------------------------------------------------------------------------------------------
    @torch.no_grad()
    def init_linear_code(self, groups: Tensor) -> None:
        """Start both linear codes from the principal components of pixel patches of `groups` [N, 12, H, W]."""
        patches = F.unfold(groups, 16, stride=16).transpose(1, 2).flatten(0, 1).double()  # [N*h*w, 12*256]
        mean = patches.mean(0)
        centred = patches - mean
        variance, vectors = torch.linalg.eigh(centred.T @ centred / len(centred))
        top = torch.arange(len(variance) - 1, len(variance) - 1 - self.latent_channels, -1)
        scale = variance[top].clamp_min(1e-8).pow(0.25)  # half-way to whitening: detail is neither lost nor blown up
        analysis = (vectors[:, top] / scale).T  # [C, 3072]
        synthesis = (vectors[:, top] * scale).T
        shape = self.linear_encoder.weight.shape
        self.linear_encoder.weight.copy_(analysis.reshape(shape))
        self.linear_encoder.bias.copy_(-(analysis @ mean))
        self.linear_decoder.weight.copy_(synthesis.reshape(shape))
        self.linear_decoder.bias.copy_(mean.view(12, -1).mean(1))

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
        latents = self.vae.encode(video).latent_dist.mode()
        return (latents - self.mean.to(latents)) / self.std.to(latents)

    @torch.no_grad()
    def decode_chunk(self, latents: Tensor, state: list | None = None) -> tuple[Tensor, list]:
        z = self.vae.post_quant_conv(latents * self.std.to(latents) + self.mean.to(latents))
        cache = [None] * self.vae._cached_conv_counts["decoder"] if state is None else list(state)
        frames = []
        for i in range(z.shape[2]):
            frames.append(self.vae.decoder(z[:, :, i : i + 1], feat_cache=cache, feat_idx=[0], first_chunk=state is None and i == 0))
        video = torch.cat(frames, dim=2)
        if (patch := self.vae.config.patch_size) is not None:
            from diffusers.models.autoencoders.autoencoder_kl_wan import unpatchify

            video = unpatchify(video, patch_size=patch)
        return video.clamp(-1.0, 1.0), cache
