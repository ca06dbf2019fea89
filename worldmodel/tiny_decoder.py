"""A tiny decoder for Wan's latents, of TAEHV's layout (madebyollin/taehv; `taew2_1` is the one for Wan 2.1), streaming.

Two columns of 2D convolutions at four resolutions. What ties frames together are blocks that also see their own input one frame
before; that input is all the state a stream has. The decoder doubles time twice, so a latent frame gives four video frames, and the
first one of a stream only its last. It takes latents normalised, as the transformer makes them, and is some hundred times
cheaper than Wan's own decoder. RELIC plays with such a one (arXiv 2512.04040, section 4.5).
"""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn

from worldmodel.autoencoder import TEMPORAL_STRIDE, VideoAutoencoder

DECODER_WIDTHS = (256, 128, 64, 64)
ENCODER_WIDTH = 64


class Squash(nn.Module):
    """Latents softly kept within -3..3"""

    def forward(self, x: Tensor) -> Tensor:
        return 3 * torch.tanh(x / 3)


class MemoryBlock(nn.Module):
    """A residual block that also sees its input one frame before."""

    def __init__(self, width: int) -> None:
        super().__init__()
        layers = [nn.Conv2d(2 * width, width, 3, padding=1), nn.ReLU()]
        layers += [nn.Conv2d(width, width, 3, padding=1), nn.ReLU(), nn.Conv2d(width, width, 3, padding=1)]
        self.conv = nn.Sequential(*layers)

    def forward(self, x: Tensor, before: Tensor) -> Tensor:
        return F.relu(self.conv(torch.cat([x, before], dim=1)) + x)


class TimePool(nn.Module):
    """`stride` frames -> one: [B*T, C, H, W] -> [B*T/stride, C, H, W], time innermost"""

    def __init__(self, width: int, stride: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width * stride, width, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x.reshape(-1, self.conv.in_channels, *x.shape[2:]))


class TimeGrow(nn.Module):
    """One frame -> `stride`: [B*T, C, H, W] -> [B*T*stride, C, H, W], time innermost"""

    def __init__(self, width: int, stride: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width * stride, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x).reshape(-1, self.conv.in_channels, *x.shape[2:])


def _encoder(channels: int) -> nn.Sequential:
    w = ENCODER_WIDTH
    layers: list[nn.Module] = [nn.Conv2d(3, w, 3, padding=1), nn.ReLU()]
    for stride in (2, 2, 1):
        layers += [TimePool(w, stride), nn.Conv2d(w, w, 3, stride=2, padding=1, bias=False), *(MemoryBlock(w) for _ in range(3))]
    return nn.Sequential(*layers, nn.Conv2d(w, channels, 3, padding=1))


def _decoder(channels: int) -> nn.Sequential:
    widths = DECODER_WIDTHS
    layers: list[nn.Module] = [Squash(), nn.Conv2d(channels, widths[0], 3, padding=1), nn.ReLU()]
    for width, next_width, stride in zip(widths, widths[1:], (1, 2, 2), strict=False):
        layers += [MemoryBlock(width) for _ in range(3)]
        layers += [nn.Upsample(scale_factor=2), TimeGrow(width, stride), nn.Conv2d(width, next_width, 3, padding=1, bias=False)]
    return nn.Sequential(*layers, nn.ReLU(), nn.Conv2d(widths[-1], 3, 3, padding=1))


class TinyWanDecoder(ModelMixin, ConfigMixin, VideoAutoencoder):
    """TAEHV's tensors under TAEHV's names. `start_encoder` may be Wan's own autoencoder, which then encodes the start pictures."""

    spatial_stride = 8

    @register_to_config
    def __init__(self, latent_channels: int = 16) -> None:
        super().__init__()
        self.latent_channels = latent_channels
        self.encoder, self.decoder = _encoder(latent_channels), _decoder(latent_channels)
        self.start_encoder: VideoAutoencoder | None = None

    @classmethod
    def from_tensors(cls, tensors: dict[str, Tensor], source: str | Path = "the checkpoint") -> TinyWanDecoder:
        """Of a published file; ValueError if it is none for Wan 2.1's kind of latents."""
        first = tensors.get("decoder.1.weight")
        if first is None or first.ndim != 4:
            raise ValueError(f"{source} is no tiny decoder of TAEHV's layout: decoder.1.weight is not in it.")
        with torch.device("meta"):
            model = cls(first.shape[1])
        wanted = model.state_dict()
        tensors = {name: _last_rows(t, wanted[name]) if name in wanted else t for name, t in tensors.items()}
        wrong = sorted({n for n in wanted if n not in tensors or tensors[n].shape != wanted[n].shape} | (tensors.keys() - wanted.keys()))
        if wrong:
            raise ValueError(f"{source} is a tiny decoder for other latents than Wan 2.1's: {len(wrong)} tensors differ, first {wrong[0]}.")
        model.load_state_dict(tensors, assign=True)
        return model.eval()

    # -- video -----------------------------------------------------------------------------------------------------------
    @torch.no_grad()
    def encode(self, video: Tensor) -> Tensor:
        """As `VideoAutoencoder.encode`. By its own encoder, four frames are a latent frame, the first one standing for four."""
        if self.start_encoder is not None:
            return self.start_encoder.encode(video)
        b, _, frames = video.shape[:3]
        if frames % TEMPORAL_STRIDE != 1:
            raise ValueError(f"A clip has 1 + 4k frames (1, 5, 9, ...), got {frames}.")
        padded = torch.cat([video[:, :, :1].expand(-1, -1, TEMPORAL_STRIDE - 1, -1, -1), video], dim=2)
        x = ((padded + 1) / 2).transpose(1, 2).flatten(0, 1)
        x, _ = self._run(self.encoder, x, [None] * len(self.encoder), b)
        return x.unflatten(0, (b, -1)).transpose(1, 2)

    @torch.no_grad()
    def decode_chunk(self, latents: Tensor, state: list[Tensor | None] | None = None) -> tuple[Tensor, list[Tensor | None]]:
        """Latent frames go through one by one, so that the pieces in which a clip comes change nothing, bit for bit."""
        frames, first = [], state is None
        state = [None] * len(self.decoder) if first else state
        for latent in latents.unbind(2):
            out, state = self._run(self.decoder, latent, state, len(latent))
            frames.append(out.unflatten(0, (len(latent), -1)))
        video = torch.cat(frames, dim=1).clamp(0, 1).transpose(1, 2) * 2 - 1
        return (video[:, :, TEMPORAL_STRIDE - 1 :] if first else video), state

    @staticmethod
    def _run(column: nn.Sequential, x: Tensor, state: list[Tensor | None], batch: int) -> tuple[Tensor, list[Tensor | None]]:
        """Frames [B*T, ...] through a column: -> what comes out and, for each memory block, the last input it had"""
        after: list[Tensor | None] = [None] * len(column)
        for i, layer in enumerate(column):
            if not isinstance(layer, MemoryBlock):
                x = layer(x)
                continue
            frames = x.unflatten(0, (batch, -1))
            last = torch.zeros_like(frames[:, 0]) if state[i] is None else state[i]
            before = torch.cat([last.unsqueeze(1), frames[:, :-1]], dim=1)
            after[i] = frames[:, -1].clone()
            x = layer(x, before.flatten(0, 1))
        return x, after


def _last_rows(tensor: Tensor, wanted: Tensor) -> Tensor:
    """Files trained to grow time more often have more rows in 1x1 convolutions; the last ones are those of the coarser step."""
    return tensor[-len(wanted) :] if tensor.shape[2:] == (1, 1) and tensor.shape[1:] == wanted.shape[1:] else tensor
