"""A world model as a diffusers pipeline, from a folder that `worldmodel export` wrote; worldmodel itself need not be installed.

pipe = DiffusionPipeline.from_pretrained(folder_or_hub_id, trust_remote_code=True)
frames = pipe("a castle at dusk", image=picture, actions="w*32 left*16", seed=0).frames
world = pipe.world_model.start(picture, "a castle at dusk")      # step, stream, rewind, fork: as in worldmodel
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKLWan, DiffusionPipeline
from diffusers.utils import BaseOutput
from PIL import Image


@dataclass
class WorldModelOutput(BaseOutput):
    """`frames`: PIL pictures, or uint8 [T, H, W, 3], or latents; `camera_to_world` float32 [T, 4, 4], OpenCV axes."""

    frames: Any
    camera_to_world: np.ndarray


class WorldModelPipeline(DiffusionPipeline):
    """Text or picture, and actions, to video. `world_model` is the interactive model of the same weights."""

    model_cpu_offload_seq = "text_encoder->transformer->vae"
    _optional_components = ["tiny_decoder"]

    def __init__(
        self, transformer, vae, scheduler, text_encoder, tokenizer, tiny_decoder=None, world_config: dict[str, Any] | None = None
    ) -> None:
        super().__init__()
        self.register_modules(
            transformer=transformer, vae=vae, scheduler=scheduler, text_encoder=text_encoder, tokenizer=tokenizer, tiny_decoder=tiny_decoder
        )
        self.register_to_config(world_config=world_config)

    @property
    def world_model(self):
        """The parts as a `WorldModel`, of the code that came with the transformer."""
        home = sys.modules[type(self.transformer).__module__]
        config = home.ModelConfig.from_dict(self.config.world_config)
        shift, stochastic = self.scheduler.config.shift, self.scheduler.config.stochastic_sampling
        config = replace(config, sampler=replace(config.sampler, shift=shift, stochastic=stochastic))
        autoencoder = home.WanAutoencoder(self.vae) if isinstance(self.vae, AutoencoderKLWan) else self.vae
        if self.tiny_decoder is not None:
            self.tiny_decoder.start_encoder, autoencoder = autoencoder, self.tiny_decoder
        text = home.TextEncoder.of_modules(config.text, self.tokenizer, self.text_encoder)
        return home.WorldModel(self.transformer, autoencoder, text, config)

    @torch.no_grad()
    def __call__(
        self,
        prompt: str = "",
        image: Any = None,
        actions: str = "w*48",
        num_inference_steps: int | None = None,
        seed: int = 0,
        generator: torch.Generator | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
    ) -> WorldModelOutput | tuple[Any, np.ndarray]:
        """Walk through the place that `image` (path, bytes, PIL, uint8 array) and `prompt` describe.

        Args:
            actions: terms keys*frames, for example "w*16 w+left*8 .*4"; the last chunk is filled up by standing still.
            num_inference_steps: denoising steps a chunk (default: the model's).
            generator: its seed is taken instead of `seed`.
            output_type: "pil", "np" or "latent".
        """
        if output_type not in ("pil", "np", "latent"):
            raise ValueError(f"output_type is 'pil', 'np' or 'latent', got {output_type!r}.")
        model = self.world_model
        if num_inference_steps is not None:
            model = model.with_steps(num_inference_steps)
        world = model.start(image, prompt, seed if generator is None else generator.initial_seed(), history=0)
        frames, poses, latents = [world.first_frame[None]], [np.eye(4, dtype=np.float32)[None]], [world.last_latents[:, :, :1]]
        for chunk in self.progress_bar(world.stream(actions)):
            frames.append(chunk.frames)
            poses.append(chunk.camera_to_world)
            latents.append(world.last_latents)
        made: Any = torch.cat(latents, dim=2) if output_type == "latent" else np.concatenate(frames)
        if output_type == "pil":
            made = [Image.fromarray(frame) for frame in made]
        output = WorldModelOutput(made, np.concatenate(poses))
        return output if return_dict else output.to_tuple()
