"""`WorldModel`: the weights of a world model and how its parts fit together. It holds nothing that changes while playing.

A model on disk is a folder::

    world_model.json   ModelConfig
    transformer/       CausalWorldTransformer (diffusers layout, safetensors)
    autoencoder/       TinyAutoencoder, or diffusers' AutoencoderKLWan (also as vae/)
    tiny_decoder/      optional: TinyWanDecoder, which then decodes, and the autoencoder encodes start pictures
    text_encoder/, tokenizer/   optional: UMT5
    prompts.safetensors   optional: embeddings of known prompts, so that they need no text encoder
    familiarity.safetensors   optional: what pictures the weights know (`worldmodel.familiarity`)

Names that ship with the package (``"tiny"``) are folders under ``worldmodel/weights``; their gallery is beside it.
"""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from worldmodel.autoencoder import VideoAutoencoder, WanAutoencoder
from worldmodel.batch import finalize_together, generate_together
from worldmodel.camera_view import depth_of
from worldmodel.chunk import Chunk, as_kept
from worldmodel.depth_estimator import DepthEstimator, check_depth, fitted
from worldmodel.familiarity import Familiarity, KnownPictures
from worldmodel.images import fit_depth_map, load_depth_map, load_start_image
from worldmodel.memory import CompressedMemory, MemoryConfig
from worldmodel.runtime import RuntimeConfig, apply_runtime
from worldmodel.sampling import SamplerConfig
from worldmodel.text import TextConfig, TextEncoder
from worldmodel.tone import tone_of
from worldmodel.transformer import CausalWorldTransformer
from worldmodel.world import HISTORY, World
from worldmodel.world_file import WorldState

if TYPE_CHECKING:
    from worldmodel.lora import Lora

CONFIG_NAME = "world_model.json"
MAX_PROMPT = 1000
MAX_TONES = 256  # prompts whose colours are kept


class ModelError(ValueError):
    """A folder that holds no complete model, or a prompt that does not fit. One clear sentence."""


class Unset:
    """Not given, where None means something."""


UNSET = Unset()


@dataclass(frozen=True)
class ModelConfig:
    """How the parts fit together. `size` is (height, width) in pixels, `chunk` latent frames a step, `fps` video frames a second,
    `history` how many chunks a world can go back where `start` is not told (`World`); it costs copies of the memory on the device;
    `start_block` how many latent frames are denoised together, and the first one kept, when the start is made from the prompt alone.
    """

    name: str = "tiny"
    size: tuple[int, int] = (128, 128)
    fps: int = 16
    chunk: int = 1
    memory: MemoryConfig = field(default_factory=MemoryConfig)
    sampler: SamplerConfig = field(default_factory=SamplerConfig)
    text: TextConfig = field(default_factory=TextConfig)
    static_scenes: bool = True  # nothing moves but the camera, so a server may rest while nobody does anything
    history: int | None = HISTORY
    start_block: int = 1

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
        runtime: RuntimeConfig | None = None,
        known_pictures: KnownPictures | None = None,
        depth_estimator: DepthEstimator | None = None,
    ) -> None:
        height, width = config.size
        stride = autoencoder.spatial_stride * transformer.config.patch_size[1]
        if height % stride or width % stride:
            raise ModelError(f"The size {height}x{width} is not a multiple of {stride} (autoencoder stride x patch).")
        self.transformer, self.autoencoder, self.text, self.config = transformer.eval(), autoencoder, text, config
        self._gallery_folder, self.known_pictures = gallery, known_pictures
        if depth_estimator is not None:
            self._check_views()
        self.depth_estimator = depth_estimator
        self.runtime = runtime or RuntimeConfig()  # as `apply_runtime` has made the transformer
        self._tones: dict[str, np.ndarray] = {}

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
        if self.runtime.offload != "off":
            return self.transformer.device  # where layers run, not where they wait
        return self.transformer.patch_embedding.weight.device  # diffusers' own property asks every module, at every chunk

    @property
    def dtype(self) -> torch.dtype:
        return self.transformer.patch_embedding.weight.dtype

    # -- loading and saving ------------------------------------------------------------------------------------------------
    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str | Path = "tiny",
        *,
        device: str | torch.device | None = None,
        dtype: torch.dtype | None = None,
        text_device: str | torch.device = "cpu",
        check: bool = True,
        runtime: RuntimeConfig | None = None,
        depth: str | Path | None = None,
        **overrides: Any,
    ) -> WorldModel:
        """Load packaged weights by name, or a folder, or a hub id.

        Args:
            device: default: CUDA when there is one, else the CPU.
            dtype: default: bfloat16 on CUDA, float32 elsewhere.
            text_device: where prompts are encoded.
            check: refuse what does not fit onto the device before loading it.
            runtime: switches of how it runs, see `RuntimeConfig`.
            depth: folder or hub id of a pretrained estimator of the start pictures' depth (`worldmodel.depth_estimator`).
            overrides: fields of `ModelConfig` to replace, for example ``sampler=SamplerConfig(steps=2)``.

        Raises:
            ModelError: no such model, or one with missing or misshapen parts. TooLargeError: it does not fit; says what would.
            RuntimeSwitchError: a switch that cannot be used here. DepthEstimatorError: the estimator cannot be loaded.
        """
        from worldmodel.loading import find_model, load_parts

        folder = find_model(name_or_path)
        device, dtype = _place(device, dtype)
        try:
            config = ModelConfig.from_dict(json.loads((folder / CONFIG_NAME).read_text()) | overrides)
        except (OSError, ValueError, TypeError) as error:
            raise ModelError(f"{folder / CONFIG_NAME} is not a readable model description: {error}") from error
        runtime = runtime or RuntimeConfig()
        parts = load_parts(folder, config, device, dtype, text_device, check, runtime)
        gallery = folder / "gallery"
        try:
            known = KnownPictures.load(folder)
        except ValueError as error:
            raise ModelError(str(error)) from error
        estimator = None if depth is None else DepthEstimator.from_pretrained(depth, device)
        return cls(*parts, config, gallery if gallery.exists() else None, runtime, known, estimator)

    @classmethod
    def from_wan(
        cls,
        checkpoint: str | Path,
        *,
        parts: str | Path | None = None,
        loras: Iterable[Lora | str | Path] = (),
        tiny_decoder: str | Path | None = None,
        prompts: str | Path | None = None,
        device: str | torch.device | None = None,
        dtype: torch.dtype | None = None,
        text_device: str | torch.device = "cpu",
        check: bool = True,
        runtime: RuntimeConfig | None = None,
        transformer: dict[str, Any] | None = None,
        **overrides: Any,
    ) -> WorldModel:
        """A RELIC student that starts from a Wan 2.1 text-to-video checkpoint; until it is trained the keys do nothing.

        Causal students without camera parts (Self-Forcing, CausVid) stream text to video as they are. Wan itself was not trained to be
        causal, or in few steps: it is where training starts.

        Args:
            checkpoint: folder or hub id in diffusers' or Wan's own layout, or a .safetensors or .pt file of the transformer alone.
            parts: where autoencoder and text encoder are, in either layout (default: in or beside the checkpoint).
            loras: merged into the weights, in this order; a path, or a `Lora` with its strength.
            tiny_decoder: a file of TAEHV's layout, `taew2_1`, that decodes instead of Wan's autoencoder.
            prompts: a `PromptCache`'s file, instead of a text encoder.
            device, dtype, text_device, check, runtime: as `from_pretrained`.
            transformer: arguments of `CausalWorldTransformer` that shapes do not tell, such as ``dict(camera_dim=128)``.
            overrides: fields of `ModelConfig`; by default 480x832, chunks of 3 latent frames, 4 steps, and a memory of the last 21.

        Raises:
            ModelError: something is missing, unreadable or of another model. TooLargeError: it does not fit; says what would.
        """
        from worldmodel.loading import load_wan

        device, dtype = _place(device, dtype)
        runtime = runtime or RuntimeConfig()
        made = load_wan(
            checkpoint, parts, loras, tiny_decoder, prompts, device, dtype, text_device, check, runtime, transformer or {}, overrides
        )
        return cls(*made, runtime=runtime)

    def save_pretrained(self, folder: str | Path, dtype: torch.dtype | None = torch.float16, max_shard_size: str = "14MB") -> None:
        """Write the model as a folder that `from_pretrained` loads; weights in shards of safetensors, of `dtype` (None: as they are)."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        for part, module in self.modules().items():
            smaller = module if dtype is None else torch.nn.Module.to(copy.deepcopy(module), dtype)
            smaller.save_pretrained(folder / part, max_shard_size=max_shard_size)
            description = folder / part / "config.json"
            known = json.loads(description.read_text())
            known.pop("_name_or_path", None)  # where the weights happened to lie
            description.write_text(json.dumps(known, indent=2, sort_keys=True) + "\n")
        (folder / CONFIG_NAME).write_text(json.dumps(asdict(self.config), indent=1) + "\n")
        if self.known_pictures is not None:
            self.known_pictures.save(folder)

    def modules(self) -> dict[str, torch.nn.Module]:
        """The parts with weights, by the folders that they are saved in."""
        parts = {"transformer": self.transformer, "autoencoder": self.autoencoder}
        if (encoder := getattr(self.autoencoder, "start_encoder", None)) is not None:
            parts |= {"autoencoder": encoder, "tiny_decoder": self.autoencoder}
        return {name: part.vae if isinstance(part, WanAutoencoder) else part for name, part in parts.items()}

    @cached_property
    def fingerprint(self) -> str:
        """Short hash of the weights; a world file names the model that made it."""
        digest = hashlib.sha256()
        for name, value in self.transformer.state_dict().items():
            digest.update(name.encode())
            value = value if type(value) is Tensor else value.dequantize()  # torchao's (`RuntimeConfig.linears`)
            digest.update(value.detach().float().cpu().contiguous().view(torch.uint8).numpy().data)
        return f"{self.config.name}-{digest.hexdigest()[:12]}"

    # -- worlds ------------------------------------------------------------------------------------------------------------
    def start(
        self, image: Any = None, prompt: str = "", seed: int = 0, history: int | None | Unset = UNSET, depth: np.ndarray | None = None
    ) -> World:  # fmt: skip
        """A new world from a picture (path, bytes, PIL image or uint8 [H, W, 3]) and a prompt.

        Without a picture the first one is made from the prompt. `history` is how many chunks one can go back at least (`World`; default:
        the config's).

        Args:
            depth: how near what the picture shows is: float [h, w] of the whole picture, large near by, of any scale and offset (1 / metres
                does, and so does what most estimators tell). Default: what a file beside the picture says (`images.load_depth_map`), else
                the pretrained estimator where there is one, else as the model tells.

        Raises:
            ImageError: the picture cannot be used. ModelError: the prompt is too long, or the model has no use for depth.
            DepthEstimatorError: `depth` is none.
        """
        self.check_prompt(prompt)
        if depth is not None:
            self._check_views()
            if image is None:
                raise ModelError("Depth is that of a start picture: give one.")
        elif image is not None:
            depth = self.start_depth(image)
        first_latent = None if image is None else as_kept(self.encode_image(image))
        first_depth = None if depth is None else self._fitted_depth(check_depth(depth), first_latent)
        return World(self, prompt, seed, first_latent, self._history(history), first_depth)

    def start_depth(self, image: Any) -> np.ndarray | None:
        """What `start` takes for a start picture's depth when none is given; None: as the model tells. An estimator may take a second."""
        if not self.transformer.config.view_focal:
            return None
        beside = load_depth_map(image) if isinstance(image, (str, Path)) else None
        if beside is not None or self.depth_estimator is None:
            return beside
        return self.depth_estimator(self._start_picture(image))

    @torch.no_grad()
    def _fitted_depth(self, depth: np.ndarray, latent: Tensor) -> Tensor:
        """`start`'s depth as a world keeps it, [1, 1, k, l], in the units of what the model tells of the picture's latent"""
        told = depth_of(self.autoencoder, latent[:, :, 0].to(self.dtype))[0]
        return as_kept(fitted(fit_depth_map(depth, told.shape), told))[None, None]

    def _check_views(self) -> None:
        if not self.transformer.config.view_focal:
            raise ModelError("This model has no camera views, so it has no use for depth.")

    def generate_together(self, worlds: Sequence[World], actions: Sequence[Any]) -> list[Chunk]:
        """The next chunk of several worlds as one batch, each under its own actions; as `World.generate` (`worldmodel.batch`)."""
        return generate_together(worlds, actions)

    def finalize_together(self, worlds: Sequence[World]) -> None:
        """Write the last chunks into the memories of several worlds as one batch; as `World.finalize`."""
        finalize_together(worlds)

    def load_world(self, path: str | Path, history: int | None | Unset = UNSET) -> World:
        """The world that `World.save` wrote; raises `WorldError` if it is not one of this model."""
        return World.load(self, path, self._history(history))

    def resume_world(self, state: WorldState, history: int | None | Unset = UNSET) -> World:
        """The world of which `state` was taken (`World.state`, `autosave.Autosave.load`)."""
        return World.from_state(self, state, self._history(history))

    def _history(self, wanted: int | None | Unset) -> int | None:
        return self.config.history if isinstance(wanted, Unset) else wanted

    def with_config(self, **changes: Any) -> WorldModel:
        """The same weights with fields of `ModelConfig` replaced."""
        return WorldModel(
            self.transformer, self.autoencoder, self.text, replace(self.config, **changes), self._gallery_folder, self.runtime,
            self.known_pictures, self.depth_estimator,
        )  # fmt: skip

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

    def familiarity(self, image: Any) -> Familiarity | None:
        """How far a start picture (as `start` takes it) is from what these weights know; None where they do not say.

        It changes nothing: any picture starts a world. Raises ImageError as `start` does.
        """
        return None if self.known_pictures is None else self.known_pictures.judge(self._start_picture(image))

    def check_prompt(self, prompt: str) -> None:
        if not isinstance(prompt, str) or len(prompt) > MAX_PROMPT:
            raise ModelError(f"A prompt is a text of at most {MAX_PROMPT} characters.")

    def use_runtime(self, runtime: RuntimeConfig) -> WorldModel:
        """Run as `runtime` says from now on, and so do models made by `with_config`: once, before the first world; returns itself."""
        apply_runtime(self.transformer, runtime, self.device)
        self.runtime = runtime
        return self

    # -- parts put to use --------------------------------------------------------------------------------------------------
    def new_memory(self) -> CompressedMemory:
        return self.transformer.new_memory(self.config.memory, self.latent_shape[1:], chunk=self.config.chunk)

    @torch.no_grad()
    def encode_image(self, image: Any) -> Tensor:
        """Latents [1, C, 1, h, w] of a start picture"""
        pixels = torch.from_numpy(self._start_picture(image))
        video = pixels.permute(2, 0, 1)[None, :, None].to(self.device, self.dtype) / 127.5 - 1
        return self.autoencoder.encode(video)

    def _start_picture(self, image: Any) -> np.ndarray:
        """uint8 [H, W, 3] of the model's size"""
        if isinstance(image, np.ndarray):
            from PIL import Image

            image = Image.fromarray(image)
        return load_start_image(image, self.size).copy()

    @torch.no_grad()
    def encode_prompt(self, prompt: str) -> list[tuple[Tensor, Tensor]]:
        """Cross-attention keys and values of each block"""
        return self.transformer.encode_text(self.text.encode(prompt).to(self.device, self.dtype))

    def tone(self, prompt: str) -> np.ndarray:
        """Colours that a prompt means (`worldmodel.tone`), of the picture that it makes alone; told once for each prompt"""
        if prompt not in self._tones:
            while len(self._tones) >= MAX_TONES:
                self._tones.pop(next(iter(self._tones)))
            self._tones[prompt] = tone_of(self.start(None, prompt, history=0).first_frame)
        return self._tones[prompt]

    @staticmethod
    def to_frames(video: Tensor) -> np.ndarray:
        """[1, 3, T, H, W] in -1..1 -> uint8 [T, H, W, 3]"""
        return WorldModel.to_pixels(video).cpu().numpy()

    @staticmethod
    def to_pixels(video: Tensor) -> Tensor:
        """The same, where the video is."""
        pixels = video[0].float().clamp(-1, 1).add(1).mul(127.5).round().to(torch.uint8)
        return pixels.permute(1, 2, 3, 0).contiguous()


def _place(device: str | torch.device | None, dtype: torch.dtype | None) -> tuple[torch.device, torch.dtype]:
    device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    return device, dtype or (torch.bfloat16 if device.type == "cuda" else torch.float32)
