"""`WorldModel`: the weights of a world model and how its parts fit together. It holds nothing that changes while playing.

A model on disk is a folder::

    world_model.json   ModelConfig
    transformer/       CausalWorldTransformer (diffusers layout, safetensors)
    autoencoder/       TinyAutoencoder, or diffusers' AutoencoderKLWan
    prompts.safetensors   optional: embeddings of known prompts, so that they need no text encoder

Names that ship with the package (``"tiny"``) are folders under ``worldmodel/weights``; their gallery is beside it.
"""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from worldmodel.autoencoder import TinyAutoencoder, VideoAutoencoder, WanAutoencoder
from worldmodel.batch import finalize_together, generate_together
from worldmodel.chunk import Chunk
from worldmodel.images import load_start_image
from worldmodel.memory import CompressedMemory, MemoryConfig
from worldmodel.sampling import SamplerConfig
from worldmodel.text import PromptCache, TextConfig, TextEncoder
from worldmodel.transformer import CausalWorldTransformer
from worldmodel.world import HISTORY, World
from worldmodel.world_file import WorldState

CONFIG_NAME = "world_model.json"
MAX_PROMPT = 1000


class ModelError(ValueError):
    """A folder that holds no complete model, or a prompt that does not fit. One clear sentence."""


@dataclass(frozen=True)
class ModelConfig:
    """How the parts fit together. `size` is (height, width) in pixels, `chunk` latent frames a step, `fps` video frames a second."""

    name: str = "tiny"
    size: tuple[int, int] = (128, 128)
    fps: int = 16
    chunk: int = 1
    memory: MemoryConfig = field(default_factory=MemoryConfig)
    sampler: SamplerConfig = field(default_factory=SamplerConfig)
    text: TextConfig = field(default_factory=TextConfig)
    static_scenes: bool = True  # nothing moves but the camera, so a server may rest while nobody does anything

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> ModelConfig:
        data = dict(data)
        for key, kind in (("memory", MemoryConfig), ("sampler", SamplerConfig), ("text", TextConfig)):
            if key in data:
                data[key] = kind(**data[key])
        return cls(**data | {"size": tuple(data.get("size", (128, 128)))})


@dataclass(frozen=True)
class GalleryWorld:
    """A place that ships with the weights: a start picture and its prompt."""

    name: str
    prompt: str
    image_path: Path
    family: str


class WorldModel:
    """A world model, ready to `start` worlds. Make one with `from_pretrained`.

    >>> model = WorldModel.from_pretrained("tiny")
    >>> world = model.start("photo.jpg", prompt="a snowy village at dusk", seed=0)
    """

    def __init__(
        self,
        transformer: CausalWorldTransformer,
        autoencoder: VideoAutoencoder,
        text: TextEncoder,
        config: ModelConfig,
        gallery: Path | None = None,
    ) -> None:
        height, width = config.size
        stride = autoencoder.spatial_stride * transformer.config.patch_size[1]
        if height % stride or width % stride:
            raise ModelError(f"The size {height}x{width} is not a multiple of {stride} (autoencoder stride x patch).")
        self.transformer, self.autoencoder, self.text, self.config = transformer.eval(), autoencoder, text, config
        self._gallery_folder = gallery

    # -- geometry ----------------------------------------------------------------------------------------------------------
    @property
    def size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return self.config.size

    @property
    def static_scenes(self) -> bool:
        """Whether standing still shows a still picture."""
        return self.config.static_scenes

    @property
    def fps(self) -> int:
        return self.config.fps

    @property
    def chunk_frames(self) -> int:
        """Video frames that a step makes."""
        return self.config.chunk * self.autoencoder.temporal_stride

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """Channels, height, width of a latent frame."""
        stride = self.autoencoder.spatial_stride
        return self.autoencoder.latent_channels, self.size[0] // stride, self.size[1] // stride

    @property
    def device(self) -> torch.device:
        return self.transformer.device

    @property
    def dtype(self) -> torch.dtype:
        return self.transformer.dtype

    # -- loading and saving ------------------------------------------------------------------------------------------------
    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str | Path = "tiny",
        *,
        device: str | torch.device | None = None,
        dtype: torch.dtype | None = None,
        **overrides: Any,
    ) -> WorldModel:
        """Load packaged weights by name, or a folder, or a hub id.

        Args:
            device: default: CUDA when there is one, else the CPU.
            dtype: default: bfloat16 on CUDA, float32 elsewhere.
            overrides: fields of `ModelConfig` to replace, for example ``sampler=SamplerConfig(steps=2)``.

        Raises:
            ModelError: no such model, or one with missing or misshapen parts.
        """
        folder = find_model(name_or_path)
        device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        dtype = dtype or (torch.bfloat16 if device.type == "cuda" else torch.float32)
        try:
            config = ModelConfig.from_dict(json.loads((folder / CONFIG_NAME).read_text()) | overrides)
        except (OSError, ValueError, TypeError) as error:
            raise ModelError(f"{folder / CONFIG_NAME} is not a readable model description: {error}") from error
        transformer = _load_part(CausalWorldTransformer, folder / "transformer", dtype).to(device)
        autoencoder = _load_autoencoder(folder / "autoencoder", dtype, device)
        prompts = folder / "prompts.safetensors"
        text = TextEncoder(config.text, cache=PromptCache.load(prompts) if prompts.exists() else None)
        gallery = folder / "gallery"
        return cls(transformer, autoencoder, text, config, gallery if gallery.exists() else None)

    def save_pretrained(self, folder: str | Path, dtype: torch.dtype = torch.float16, max_shard_size: str = "14MB") -> None:
        """Write the model as a folder that `from_pretrained` loads; weights in shards of safetensors."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        for part, module in (("transformer", self.transformer), ("autoencoder", self.autoencoder)):
            if isinstance(module, WanAutoencoder):
                module = module.vae
            smaller = torch.nn.Module.to(copy.deepcopy(module), dtype)
            smaller.save_pretrained(folder / part, max_shard_size=max_shard_size)
            description = folder / part / "config.json"
            known = json.loads(description.read_text())
            known.pop("_name_or_path", None)  # where the weights happened to lie
            description.write_text(json.dumps(known, indent=2, sort_keys=True) + "\n")
        (folder / CONFIG_NAME).write_text(json.dumps(asdict(self.config), indent=1) + "\n")

    @cached_property
    def fingerprint(self) -> str:
        """Short hash of the weights; a world file names the model that made it."""
        digest = hashlib.sha256()
        for name, value in self.transformer.state_dict().items():
            digest.update(name.encode())
            digest.update(value.detach().float().cpu().contiguous().view(torch.uint8).numpy().data)
        return f"{self.config.name}-{digest.hexdigest()[:12]}"

    # -- worlds ------------------------------------------------------------------------------------------------------------
    def start(self, image: Any = None, prompt: str = "", seed: int = 0, history: int | None = HISTORY) -> World:
        """A new world from a picture (path, bytes, PIL image or uint8 [H, W, 3]) and a prompt.

        Without a picture the first one is made from the prompt. `history` is how many chunks one can go back at least (`World`).

        Raises:
            ImageError: the picture cannot be used. ModelError: the prompt is too long.
        """
        self.check_prompt(prompt)
        return World(self, prompt, seed, None if image is None else self.encode_image(image), history)

    def generate_together(self, worlds: Sequence[World], actions: Sequence[Any]) -> list[Chunk]:
        """The next chunk of several worlds as one batch, each under its own actions; as `World.generate` (`worldmodel.batch`)."""
        return generate_together(worlds, actions)

    def finalize_together(self, worlds: Sequence[World]) -> None:
        """Write the last chunks into the memories of several worlds as one batch; as `World.finalize`."""
        finalize_together(worlds)

    def load_world(self, path: str | Path, history: int | None = HISTORY) -> World:
        """The world that `World.save` wrote; raises `WorldError` if it is not one of this model."""
        return World.load(self, path, history)

    def resume_world(self, state: WorldState, history: int | None = HISTORY) -> World:
        """The world of which `state` was taken (`World.state`, `autosave.Autosave.load`)."""
        return World.from_state(self, state, history)

    def with_config(self, **changes: Any) -> WorldModel:
        """The same weights with fields of `ModelConfig` replaced."""
        return WorldModel(self.transformer, self.autoencoder, self.text, replace(self.config, **changes), self._gallery_folder)

    def with_steps(self, steps: int) -> WorldModel:
        """The same weights with another number of denoising steps."""
        return self.with_config(sampler=self.config.sampler.with_steps(steps))

    def with_memory(self, memory: MemoryConfig) -> WorldModel:
        """The same weights with another memory."""
        return self.with_config(memory=memory)

    @cached_property
    def gallery(self) -> list[GalleryWorld]:
        """The places that ship with these weights."""
        if self._gallery_folder is None:
            return []
        entries = json.loads((self._gallery_folder / "gallery.json").read_text())
        return [GalleryWorld(e["name"], e["prompt"], self._gallery_folder / e["image"], e["family"]) for e in entries]

    def check_prompt(self, prompt: str) -> None:
        if not isinstance(prompt, str) or len(prompt) > MAX_PROMPT:
            raise ModelError(f"A prompt is a text of at most {MAX_PROMPT} characters.")

    # -- parts put to use --------------------------------------------------------------------------------------------------
    def new_memory(self) -> CompressedMemory:
        return self.transformer.new_memory(self.config.memory, self.latent_shape[1:], chunk=self.config.chunk)

    @torch.no_grad()
    def encode_image(self, image: Any) -> Tensor:
        """Latents [1, C, 1, h, w] of a start picture"""
        if isinstance(image, np.ndarray):
            from PIL import Image

            image = Image.fromarray(image)
        pixels = torch.from_numpy(load_start_image(image, self.size).copy())
        video = pixels.permute(2, 0, 1)[None, :, None].to(self.device, self.dtype) / 127.5 - 1
        return self.autoencoder.encode(video)

    @torch.no_grad()
    def encode_prompt(self, prompt: str) -> list[tuple[Tensor, Tensor]]:
        """Cross-attention keys and values of each block"""
        return self.transformer.encode_text(self.text.encode(prompt).to(self.device, self.dtype))

    @staticmethod
    def to_frames(video: Tensor) -> np.ndarray:
        """[1, 3, T, H, W] in -1..1 -> uint8 [T, H, W, 3]"""
        pixels = video[0].float().clamp(-1, 1).add(1).mul(127.5).round().to(torch.uint8)
        return np.ascontiguousarray(pixels.permute(1, 2, 3, 0).cpu().numpy())


def packaged_models() -> dict[str, Path]:
    """Names and folders of the models inside the package."""
    root = Path(str(resources.files("worldmodel"))) / "weights"
    return {p.parent.name: p.parent for p in sorted(root.glob(f"*/{CONFIG_NAME}"))}


def find_model(name_or_path: str | Path) -> Path:
    """Folder of a packaged model, a local folder, or a hub snapshot (downloaded)."""
    packaged = packaged_models()
    if str(name_or_path) in packaged:
        return packaged[str(name_or_path)]
    folder = Path(name_or_path).expanduser()
    if folder.is_dir():
        if not (folder / CONFIG_NAME).exists():
            raise ModelError(f"{folder} has no {CONFIG_NAME}, so it is not a world model's folder.")
        return folder
    if "/" in str(name_or_path) and not folder.is_absolute() and str(name_or_path).count("/") == 1:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, RepositoryNotFoundError

        try:
            return Path(snapshot_download(str(name_or_path)))
        except (RepositoryNotFoundError, LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
            raise ModelError(
                f"No model {name_or_path!r}: it is no folder here, and the hub did not give it ({type(error).__name__})."
            ) from error
    raise ModelError(
        f"There is no model {str(name_or_path)!r}. Packaged models: {', '.join(packaged) or 'none'}; "
        "or give a folder or a hub id (user/name)."
    )


def _load_part(kind: type, folder: Path, dtype: torch.dtype):
    """A diffusers module, refusing missing, unexpected and misshapen tensors."""
    if not (folder / "config.json").exists():
        raise ModelError(f"{folder} has no config.json, so this part of the model is missing.")
    try:
        module, info = kind.from_pretrained(folder, torch_dtype=dtype, output_loading_info=True)
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        raise ModelError(f"The weights in {folder} cannot be loaded: {str(error).splitlines()[0]}") from error
    problems = [*(f"{k} is missing" for k in info["missing_keys"]), *(f"{k} is unknown" for k in info["unexpected_keys"])]
    problems += [f"{m[0]} has another shape" for m in info.get("mismatched_keys", [])]
    if problems:
        more = f" and {len(problems) - 1} more" if len(problems) > 1 else ""
        raise ModelError(f"The weights in {folder} do not fit: {problems[0]}{more}.")
    return module.eval()


def _load_autoencoder(folder: Path, dtype: torch.dtype, device: torch.device) -> VideoAutoencoder:
    config = folder / "config.json"
    kind = json.loads(config.read_text()).get("_class_name") if config.exists() else None
    if kind == "AutoencoderKLWan":
        from diffusers import AutoencoderKLWan

        return WanAutoencoder(_load_part(AutoencoderKLWan, folder, dtype).to(device))
    return _load_part(TinyAutoencoder, folder, dtype).to(device)
