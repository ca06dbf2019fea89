"""The small model with everything that the packaged one has: remembered pictures and a stochastic sampler."""

from __future__ import annotations

import torch
from small import small_model

from worldmodel.memory import MemoryConfig
from worldmodel.model import WorldModel
from worldmodel.sampling import SamplerConfig
from worldmodel.transformer import CausalWorldTransformer


def with_views(dtype=torch.float32, **changes):
    """The small model, shown three pictures of those remembered, with a stochastic sampler."""
    model = small_model(memory=MemoryConfig(2, horizon=7))
    config = {k: v for k, v in model.transformer.config.items() if not k.startswith("_")}
    transformer = CausalWorldTransformer(**config | {"view_focal": 0.6, "view_pictures": 3})
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for p in transformer.parameters():
            p.add_(torch.randn(p.shape, generator=generator) * 0.1)
    model = WorldModel(transformer.to(dtype), model.autoencoder.requires_grad_(False).to(dtype), model.text, model.config)
    return model.with_config(**{"sampler": SamplerConfig(2, stochastic=True)} | changes)
