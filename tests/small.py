"""A small random world model that runs in milliseconds: real classes, few weights."""

from __future__ import annotations

import numpy as np
import torch

from worldmodel.autoencoder import TinyAutoencoder
from worldmodel.memory import MemoryConfig
from worldmodel.model import ModelConfig, WorldModel
from worldmodel.sampling import SamplerConfig
from worldmodel.text import TextConfig, TextEncoder
from worldmodel.transformer import CausalWorldTransformer


class WordEncoder(TextEncoder):
    """Embeddings from a hash of the words, so that tests need no language model."""

    def _run(self, text: str) -> torch.Tensor:
        words = text.split()[: self.config.length]
        return torch.stack([torch.randn(self.config.dim, generator=torch.Generator().manual_seed(sum(map(ord, w)))) for w in words])


def small_model(
    seed: int = 0, chunk: int = 1, memory: MemoryConfig | None = None, steps: int = 2, view_focal: float = 0.0
) -> WorldModel:  # fmt: skip
    torch.manual_seed(seed)
    autoencoder = TinyAutoencoder(latent_channels=8, decoder_widths=(8, 8), decoder_blocks=1, depth_widths=(8, 8, 8)).eval()
    transformer = CausalWorldTransformer(
        patch_size=(1, 1, 1), num_attention_heads=2, attention_head_dim=12, in_channels=8, out_channels=8, text_dim=16,
        freq_dim=16, ffn_dim=32, num_layers=2, camera_dim=8, rope_theta=100.0, prediction_type="sample",
        view_focal=view_focal, view_pictures=2,
    )  # fmt: skip
    generator = torch.Generator().manual_seed(seed + 1)
    with torch.no_grad():
        for p in [*transformer.parameters(), *autoencoder.parameters()]:
            p.add_(torch.randn(p.shape, generator=generator) * 0.1)
    config = ModelConfig(
        name="small", size=(64, 64), chunk=chunk, memory=memory or MemoryConfig(window=3, horizon=10),
        sampler=SamplerConfig(steps=steps), text=TextConfig(length=6, dim=16),
    )  # fmt: skip
    return WorldModel(transformer, autoencoder, WordEncoder(config.text), config)


def picture(seed: int = 0, size: tuple[int, int] = (80, 100)) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 255, (*size, 3), dtype=np.uint8)
