"""From files to the parts of a `WorldModel`: folders of our own, hub snapshots, and Wan checkpoints in the ways they are published.

Nothing large is read before it is known to be whole and to fit (`worldmodel.fitting`).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKLWan
from diffusers.loaders.single_file_utils import convert_wan_vae_to_diffusers
from safetensors import SafetensorError

from worldmodel import fitting
from worldmodel.autoencoder import TinyAutoencoder, VideoAutoencoder, WanAutoencoder
from worldmodel.checkpoints import count_numbers, read_tensors
from worldmodel.convert import WanCheckpoint
from worldmodel.lora import Lora
from worldmodel.memory import MemoryConfig
from worldmodel.model import CONFIG_NAME, ModelConfig, ModelError
from worldmodel.runtime import RuntimeConfig, apply_runtime
from worldmodel.sampling import SamplerConfig
from worldmodel.text import PromptCache, TextConfig, TextEncoder
from worldmodel.tiny_decoder import TinyWanDecoder
from worldmodel.transformer import CausalWorldTransformer
from worldmodel.umt5 import find_original_umt5

WAN_VAE = "Wan2.1_VAE.pth"
WAN_LENGTH = 21
"""Latent frames that Wan 2.1 was trained on, and Self-Forcing's students after it: what they can look at."""


# -- folders -------------------------------------------------------------------------------------------------------------
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
    if not folder.exists() and (snapshot := download(name_or_path)):
        folder = snapshot
    if folder.is_file():
        raise ModelError(f"{folder} is a file; a model is a folder with {CONFIG_NAME}. Wan checkpoints go through WorldModel.from_wan.")
    if not folder.is_dir():
        raise ModelError(
            f"There is no model {str(name_or_path)!r}. Packaged models: {', '.join(packaged) or 'none'}; "
            "or give a folder or a hub id (user/name)."
        )
    if (folder / CONFIG_NAME).exists():
        return folder
    if _is_wan(folder):
        raise ModelError(f"{folder} is a Wan checkpoint, not a world model: start one from it with WorldModel.from_wan.")
    inside = sorted(p.parent.name for p in folder.glob(f"*/{CONFIG_NAME}"))
    hint = f" There is one in {folder / inside[0]}." if inside else ""
    raise ModelError(f"{folder} has no {CONFIG_NAME}, so it is not a world model's folder.{hint}")


def _is_wan(folder: Path) -> bool:
    stated = [read_json(folder / name).get("_class_name", "") for name in ("model_index.json", "config.json") if (folder / name).exists()]
    return any("Wan" in str(name) for name in stated) or (folder / WAN_VAE).exists()


def download(name: str | Path, **kwargs: Any) -> Path | None:
    """Folder of a hub repository's snapshot; None if `name` is no hub id (user/name)."""
    if Path(name).is_absolute() or str(name).count("/") != 1 or str(name).startswith((".", "~")):
        return None
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, RepositoryNotFoundError

    try:
        return Path(snapshot_download(str(name), **kwargs))
    except (RepositoryNotFoundError, LocalEntryNotFoundError, HfHubHTTPError, HFValidationError, OSError) as error:
        raise ModelError(f"No model {str(name)!r}: it is no folder here, and the hub did not give it ({type(error).__name__}).") from error


def read_json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ModelError(f"{path} is not readable JSON: {error}") from error


# -- a folder of our own -------------------------------------------------------------------------------------------------
def load_parts(
    folder: Path, config: ModelConfig, device: torch.device, dtype: torch.dtype, text_device: str | torch.device, check: bool,
    runtime: RuntimeConfig,
) -> tuple[CausalWorldTransformer, VideoAutoencoder, TextEncoder]:
    """Transformer, autoencoder and text encoder of a folder with `world_model.json` (`worldmodel.model` has the layout)."""
    vae = next((folder / name for name in ("autoencoder", "vae") if (folder / name).is_dir()), folder / "autoencoder")
    tiny = folder / "tiny_decoder"
    text = find_text(folder, config.text, text_device)
    if check:
        shown = _empty_autoencoder(vae)
        if tiny.is_dir():
            shown = _tiny_on_meta(_empty(TinyWanDecoder, tiny).latent_channels, shown)
        wish = fitting.Wish(
            _empty(CausalWorldTransformer, folder / "transformer"), shown, config.memory, config.size, config.chunk, dtype,
            _text_bytes(text, device), config.text.length, runtime,
        )  # fmt: skip
        fitting.check(wish, device, config.name, _options(wish, device))
    transformer = load_part(CausalWorldTransformer, folder / "transformer", dtype).to(runtime.weights_device(device))
    apply_runtime(transformer, runtime, device)
    autoencoder = _load_autoencoder(vae, dtype, device)
    if tiny.is_dir():
        decoder = load_part(TinyWanDecoder, tiny, dtype).to(device)
        decoder.start_encoder, autoencoder = autoencoder, decoder
    return transformer, autoencoder, text


def load_part(kind: type, folder: Path, dtype: torch.dtype):
    """A diffusers module, refusing missing, unexpected and misshapen tensors."""
    if not (folder / "config.json").exists():
        raise ModelError(f"{folder} has no config.json, so this part of the model is missing.")
    try:
        module, info = kind.from_pretrained(folder, torch_dtype=dtype, output_loading_info=True)
    except (OSError, ValueError, RuntimeError, KeyError, TypeError, SafetensorError) as error:
        raise ModelError(f"The weights in {folder} cannot be loaded: {str(error).splitlines()[0]}") from error
    problems = [*(f"{k} is missing" for k in info["missing_keys"]), *(f"{k} is unknown" for k in info["unexpected_keys"])]
    problems += [f"{m[0]} has another shape" for m in info.get("mismatched_keys", [])]
    if problems:
        more = f" and {len(problems) - 1} more" if len(problems) > 1 else ""
        raise ModelError(f"The weights in {folder} do not fit: {problems[0]}{more}.")
    return module.eval()


def _autoencoder_class(folder: Path) -> type:
    config = folder / "config.json"
    name = read_json(config).get("_class_name") if config.exists() else None
    return {"AutoencoderKLWan": AutoencoderKLWan, "TinyWanDecoder": TinyWanDecoder}.get(name, TinyAutoencoder)


def _load_autoencoder(folder: Path, dtype: torch.dtype, device: torch.device) -> VideoAutoencoder:
    part = load_part(_autoencoder_class(folder), folder, dtype).to(device)
    return WanAutoencoder(part) if isinstance(part, AutoencoderKLWan) else part


def _empty(kind: type, folder: Path):
    """A part without storage for its weights"""
    if not (folder / "config.json").exists():
        raise ModelError(f"{folder} has no config.json, so this part of the model is missing.")
    try:
        with torch.device("meta"):
            return kind.from_config(read_json(folder / "config.json"))
    except (ValueError, TypeError, KeyError) as error:
        raise ModelError(f"{folder / 'config.json'} describes no {kind.__name__}: {str(error).splitlines()[0]}") from error


def _empty_autoencoder(folder: Path) -> VideoAutoencoder:
    part = _empty(_autoencoder_class(folder), folder)
    return WanAutoencoder(part) if isinstance(part, AutoencoderKLWan) else part


# -- text ----------------------------------------------------------------------------------------------------------------
def find_text(folder: Path, config: TextConfig, device: str | torch.device, prompts: str | Path | None = None) -> TextEncoder:
    """The text encoder of a folder (nothing is loaded yet), with the embeddings of known prompts if there are any."""
    known = Path(prompts) if prompts else folder / "prompts.safetensors"
    try:
        cache = PromptCache.load(known) if prompts or known.exists() else None
    except (OSError, ValueError, SafetensorError) as error:
        raise ModelError(f"The known prompts in {known} cannot be read: {error}") from error
    weights = folder if (folder / "text_encoder").is_dir() or find_original_umt5(folder) else None
    return TextEncoder(config, weights, cache, device, torch.float32 if config.kind == "minilm" else torch.bfloat16)


def _text_bytes(text: TextEncoder, device: torch.device) -> int:
    """Of the encoder's weights where it shares the device"""
    if not text.has_weights or text.device.type != device.type:
        return 0
    original = find_original_umt5(text.folder)
    files = [original] if original else sorted((text.folder / "text_encoder").glob("*.safetensors"))
    return text.dtype.itemsize * sum(count_numbers(file) for file in files)


# -- Wan -----------------------------------------------------------------------------------------------------------------
def load_wan(
    checkpoint: str | Path, parts: str | Path | None, loras: Iterable[Lora | str | Path], tiny_decoder: str | Path | None,
    prompts: str | Path | None, device: torch.device, dtype: torch.dtype, text_device: str | torch.device, check: bool,
    runtime: RuntimeConfig, transformer: dict[str, Any], overrides: dict[str, Any],
) -> tuple[CausalWorldTransformer, VideoAutoencoder, TextEncoder, ModelConfig]:  # fmt: skip
    """What `WorldModel.from_wan` is made of."""
    path = _find_wan(checkpoint)
    home = _find_wan(parts) if parts is not None else path if path.is_dir() else path.parent
    try:
        wan = WanCheckpoint(path, **transformer)
        merged = [lora if isinstance(lora, Lora) else Lora(lora) for lora in loras]
        if wan.config["in_channels"] != wan.config["out_channels"]:
            raise ModelError(f"{path} takes {wan.config['in_channels']} channels, as image-to-video does: use a text-to-video checkpoint.")
        config = _wan_config(wan, Path(checkpoint).name.removesuffix(".pt").removesuffix(".safetensors"), overrides)
        text = find_text(home, config.text, text_device, prompts)
        if not (text.has_weights or len(text.cache)):
            raise ModelError(
                f"There is no text encoder in {home}: give parts=, the folder with text_encoder/ and tokenizer/ (diffusers) or "
                "models_t5_*.pth and google/umt5-xxl/ (Wan), or prompts=, embeddings of known prompts (docs/wan.md)."
            )
        empty_vae, load_vae = _wan_vae(home, needed=tiny_decoder is None)
        tiny = None if tiny_decoder is None else TinyWanDecoder.from_tensors(read_tensors(tiny_decoder), tiny_decoder)
        shown = WanAutoencoder(empty_vae) if tiny is None else tiny
        if shown.latent_channels != wan.config["out_channels"]:
            raise ModelError(f"The autoencoder has {shown.latent_channels} latent channels, {path} {wan.config['out_channels']}.")
        if check:
            encoder = None if empty_vae is None else WanAutoencoder(empty_vae)
            on_meta = shown if tiny is None else _tiny_on_meta(tiny.latent_channels, encoder)
            wish = fitting.Wish(
                wan.empty(), on_meta, config.memory, config.size, config.chunk, dtype, _text_bytes(text, device),
                config.text.length, runtime,
            )  # fmt: skip
            ways = _options(wish, device, tiny is None, wan.config["num_layers"] > 30)
            fitting.check(wish, device, config.name, ways)
        model = wan.load(dtype, merged, runtime.weights_device(device))
        apply_runtime(model, runtime, device)
        autoencoder: VideoAutoencoder | None = None if load_vae is None else WanAutoencoder(load_vae(dtype).to(device))
    except ModelError:
        raise
    except (ValueError, OSError, TypeError) as error:
        raise ModelError(str(error)) from error
    if tiny is not None:
        tiny = torch.nn.Module.to(tiny, device, dtype).requires_grad_(False)
        tiny.start_encoder, autoencoder = autoencoder, tiny
    return model, autoencoder, text, config


def _find_wan(path: str | Path) -> Path:
    found = Path(path).expanduser()
    if found.exists():
        return found
    # one way of storing a Wan is enough: what diffusers reads, or the original, without pictures and examples
    if snapshot := download(path, ignore_patterns=["assets/*", "examples/*", "*.png", "*.jpg", "*.mp4"]):
        return snapshot
    raise ModelError(f"There is no checkpoint {path}: give a folder, a .safetensors or .pt file, or a hub id (user/name).")


def _wan_config(wan: WanCheckpoint, name: str, overrides: dict[str, Any]) -> ModelConfig:
    """Self-Forcing's way of playing (4 steps, blocks of 3 latent frames, fresh noise at each step, all of 21 latent frames seen), and
    RELIC's memory and a start that is a block of its own once the weights know the camera.
    """
    chunk = overrides.get("chunk", 3)
    window = MemoryConfig(window=WAN_LENGTH - chunk, schedule=(), horizon=WAN_LENGTH)
    usual = ModelConfig(
        name=name, size=(480, 832), fps=16, chunk=chunk, memory=MemoryConfig() if wan.has_camera else window,
        sampler=SamplerConfig(4, 5.0, stochastic=True), text=TextConfig("umt5", 512, wan.config["text_dim"]),
        static_scenes=False, history=0, start_block=1 if wan.has_camera else chunk,
    )  # fmt: skip
    return replace(usual, **overrides)


def _wan_vae(home: Path, needed: bool) -> tuple[AutoencoderKLWan | None, Callable[[torch.dtype], AutoencoderKLWan] | None]:
    """Wan's autoencoder in a folder of either layout: without storage, and how to load it"""
    folder = home / "vae"
    if folder.is_dir():
        return _empty(AutoencoderKLWan, folder), lambda dtype: load_part(AutoencoderKLWan, folder, dtype)
    if not (home / WAN_VAE).exists():
        if needed:
            raise ModelError(
                f"There is no autoencoder in {home}: give parts=, the folder with vae/ (diffusers) or {WAN_VAE} (Wan), or tiny_decoder=."
            )
        return None, None
    tensors = convert_wan_vae_to_diffusers(read_tensors(home / WAN_VAE))
    try:
        shape = {"base_dim": tensors["encoder.conv_in.weight"].shape[0], "z_dim": tensors["post_quant_conv.weight"].shape[0]}
    except KeyError as error:
        raise ModelError(f"{home / WAN_VAE} is not Wan's autoencoder: {error.args[0]} is not in it.") from error
    statistics = {} if shape["z_dim"] == 16 else {"latents_mean": [0.0] * shape["z_dim"], "latents_std": [1.0] * shape["z_dim"]}
    with torch.device("meta"):
        vae = AutoencoderKLWan(**shape, **statistics)
    wanted = vae.state_dict()
    wrong = sorted({n for n in wanted if n not in tensors or tensors[n].shape != wanted[n].shape} | (tensors.keys() - wanted.keys()))
    if wrong:
        raise ModelError(f"{home / WAN_VAE} is not Wan 2.1's autoencoder: {len(wrong)} tensors differ, first {wrong[0]}.")

    def load(dtype: torch.dtype) -> AutoencoderKLWan:
        vae.load_state_dict({name: t.to(dtype) for name, t in tensors.items()}, assign=True)
        return vae.eval()

    return vae, load


def _tiny_on_meta(channels: int, encoder: VideoAutoencoder | None) -> TinyWanDecoder:
    with torch.device("meta"):
        made = TinyWanDecoder(channels)
    made.start_encoder = encoder
    return made


# -- what else would fit --------------------------------------------------------------------------------------------------
def _options(wish: fitting.Wish, device: torch.device, vae: bool = False, large: bool = False) -> Sequence[tuple[str, fitting.Wish]]:
    """Ways to need less: each alone, then one on top of the other."""
    ways: dict[str, dict[str, Any]] = {}  # what to write, and what it changes
    gpu, runtime = device.type != "cpu", wish.runtime
    if wish.text and gpu:
        ways["text_device='cpu'"] = {"text": 0}
    if wish.dtype == torch.float32:
        ways["dtype=torch.bfloat16"] = {"dtype": torch.bfloat16}
    if vae:
        ways["tiny_decoder= (taew2_1)"] = {"autoencoder": _tiny_on_meta(wish.autoencoder.latent_channels, wish.autoencoder)}
    if runtime.kv == "same":
        ways["runtime=RuntimeConfig(kv='float8')"] = {"runtime": replace(runtime, kv="float8")}
    for window, horizon in ((8, 21), (4, 12)):
        if wish.memory.horizon > horizon:
            label = f"memory=MemoryConfig(window={window}, schedule=(), horizon={horizon})"
            ways[label] = {"memory": replace(wish.memory, window=window, schedule=(), horizon=horizon, policy="relic")}
    if gpu and runtime.offload == "off" and runtime.linears == "same":
        ways["runtime=RuntimeConfig(kv='float8', offload='layers')"] = {"runtime": replace(runtime, kv="float8", offload="layers")}
    options = [(text, replace(wish, **change)) for text, change in ways.items()]
    written: dict[str, str] = {}
    piled: dict[str, Any] = {}
    for text, change in ways.items():
        written[text.partition("=")[0]] = text  # the smaller memory instead of the larger one
        piled |= change
        if len(written) > 1:
            options.append((" and ".join(written.values()), replace(wish, **piled)))
    if large:
        with torch.device("meta"):
            small_wan = CausalWorldTransformer(num_attention_heads=12, num_layers=30, ffn_dim=8960)
        options.append(("Wan 1.3B", replace(wish, transformer=small_wan)))
    return options
