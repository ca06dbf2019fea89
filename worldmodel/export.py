"""A world model as a folder for the hub that plain diffusers opens, code included: `DiffusionPipeline.from_pretrained(folder,
trust_remote_code=True)`. `WorldModel.from_pretrained` opens the same folder.

diffusers takes custom code as single files, one beside each part (`worldmodel.single_file`).
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import diffusers
from diffusers import AutoencoderKLWan

from worldmodel.hub_pipeline import WorldModelPipeline
from worldmodel.model import ModelError, WorldModel
from worldmodel.single_file import single_file
from worldmodel.text import TextError

TRANSFORMER, AUTOENCODER, TINY, PIPELINE = (f"{name}_worldmodel" for name in ("transformer", "autoencoder", "tiny_decoder", "pipeline"))

CARD = """---
library_name: diffusers
pipeline_tag: image-to-video
tags: [world-model, video, camera-control]
---

# {name}

An interactive video world model: a picture, a sentence and keys become a place that one walks through. {height}x{width} pixels at {fps}
frames a second, {steps} denoising steps a chunk of {frames} frames; {parameters:.3g} million parameters in the transformer.

With diffusers alone (the code comes with this folder; read it before you trust it):

```python
import torch
from diffusers import DiffusionPipeline

pipe = DiffusionPipeline.from_pretrained("{folder}", trust_remote_code=True, torch_dtype=torch.{dtype})
frames = pipe("a castle at dusk", image="photo.jpg", actions="w*32 left*16", seed=0).frames
world = pipe.world_model.start("photo.jpg", "a castle at dusk")   # then world.step(...), world.stream(...), world.rewind(...)
```

With worldmodel: `WorldModel.from_pretrained("{folder}")`, and the same page, server and commands as for any other model.
"""


def export(model: WorldModel, folder: str | Path, max_shard_size: str = "5GB") -> Path:
    """Write the folder, weights as they are; ModelError if it is not empty, or if there is no text encoder to go along."""
    folder = Path(folder)
    if folder.exists() and any(folder.iterdir()):
        raise ModelError(f"{folder} is not empty: give a new folder to export to.")
    try:
        tokenizer, encoder = model.text.modules
    except TextError as error:
        raise ModelError(f"An exported model needs its text encoder: {error}") from error
    model.save_pretrained(folder, None, max_shard_size)
    (folder / "autoencoder").rename(folder / "vae")
    tokenizer.save_pretrained(folder / "tokenizer")
    encoder.save_pretrained(folder / "text_encoder", max_shard_size=max_shard_size)
    model.config.sampler.scheduler().save_pretrained(folder / "scheduler")
    if len(model.text.cache):
        model.text.cache.save(folder / "prompts.safetensors")
    if model.gallery:
        shutil.copytree(model.gallery[0].image_path.parent, folder / "gallery")
    _write_code(model, folder, tokenizer, encoder)
    height, width = model.size
    card = CARD.format(
        name=model.config.name, height=height, width=width, fps=model.fps, steps=model.config.sampler.steps, frames=model.chunk_frames,
        parameters=sum(p.numel() for p in model.transformer.parameters()) / 1e6, folder=folder.name,
        dtype=str(model.dtype).removeprefix("torch."),
    )  # fmt: skip
    (folder / "README.md").write_text(card)
    return folder


def _write_code(model: WorldModel, folder: Path, tokenizer: object, encoder: object) -> None:
    index = {
        "_class_name": [PIPELINE, WorldModelPipeline.__name__], "_diffusers_version": diffusers.__version__,
        "transformer": [TRANSFORMER, "CausalWorldTransformer"], "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
        "text_encoder": ["transformers", type(encoder).__name__], "tokenizer": ["transformers", type(tokenizer).__name__],
        "tiny_decoder": [None, None], "world_config": json.loads((folder / "world_model.json").read_text()),
    }  # fmt: skip
    parts = model.modules()
    code = {folder / "transformer" / TRANSFORMER: (("model",), "A world model: transformer, memory, worlds.")}
    if isinstance(parts["autoencoder"], AutoencoderKLWan):
        index["vae"] = ["diffusers", "AutoencoderKLWan"]
    else:
        index["vae"] = [AUTOENCODER, "TinyAutoencoder"]
        code[folder / "vae" / AUTOENCODER] = (("autoencoder",), "A small video autoencoder.")
    if "tiny_decoder" in parts:
        index["tiny_decoder"] = [TINY, "TinyWanDecoder"]
        code[folder / "tiny_decoder" / TINY] = (("tiny_decoder",), "A tiny decoder for Wan's latents.")
    code[folder / PIPELINE] = (("hub_pipeline",), "A world model as a diffusers pipeline.")
    for path, (roots, title) in code.items():
        path.with_suffix(".py").write_text(single_file(roots, title))
    (folder / "model_index.json").write_text(json.dumps(index, indent=1) + "\n")
