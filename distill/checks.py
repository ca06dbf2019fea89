"""What can be said about a run before torch is imported: is the data there, and do weights and checkpoints have the recipe's shapes?

Shapes are read from the headers of safetensors files. What needs the model itself (every tensor of it, or a .pt file) is still
found when it is built; the common mistakes end here, within a second.
"""

from __future__ import annotations

import argparse
import json
import struct
from pathlib import Path
from typing import Any

from distill.dataset import paths, stems
from distill.recipe import Recipe, RecipeError
from distill.scenes.__main__ import parse_seeds
from distill.scenes.dataset import Settings, clip_stem
from distill.stage_recipes import PATCH

Shapes = dict[str, tuple[int, ...]]
MINILM, UMT5 = 384, 4096  # widths of the embeddings of captions
WAN_CHANNELS, WAN_STRIDE = 16, 8
PARTS = "part-*.safetensors"  # of `distill.checkpoint`

_NAMES = {  # what a tensor's shape tells; diffusers' name, then the original Wan name
    "patch": ("patch_embedding.weight",),
    "out": ("proj_out.weight", "head.head.weight"),
    "text": ("condition_embedder.text_embedder.linear_1.weight", "text_embedding.0.weight"),
    "time": ("condition_embedder.time_embedder.linear_1.weight", "time_embedding.0.weight"),
    "ffn": ("blocks.0.ffn.net.0.proj.weight", "blocks.0.ffn.0.weight"),
    "camera": ("action_encoder.0.weight",),
}


# -- data ------------------------------------------------------------------------------------------------------------------
def clip_files(recipe: Recipe, out: Path) -> list[Path]:
    """Path stems of the clips in order: the rendered ones, there already or not, or those of `data.folder`."""
    d = recipe.data
    if not d.folder:
        if d.shape != (d.size, d.size):
            raise RecipeError("Rendered clips are square: data.width needs clips of that size in data.folder.")
        try:
            seeds = parse_seeds(d.seeds)
        except argparse.ArgumentTypeError as error:
            raise RecipeError(f"data.seeds: {error}.") from error
        Settings(seeds, d.frames, d.size, d.level)  # refuses reserved seeds before anything is written
        return [clip_stem(out / "data", i) for i in range(1, d.clips + 1)]
    if not Path(d.folder).is_dir():
        raise RecipeError(f"There is no folder {d.folder} (data.folder).")
    found = stems(d.folder)[: d.clips]
    if len(found) < d.held_out + 2:
        raise RecipeError(f"{d.folder} has {len(found)} clips; data.held_out={d.held_out} needs at least {d.held_out + 2}.")
    height, width = d.shape
    want = f"data.size={height}" + (f", data.width={width}" if width != height else "")
    for stem in found:
        facts = json.loads(paths(stem)[2].read_text())
        if (shape := [facts[k] for k in ("num_frames", "height", "width")]) != [d.frames, height, width]:
            raise RecipeError(f"{stem} has {shape[0]} frames of {shape[1]}x{shape[2]}, not data.frames={d.frames} of {want}.")
    return found


# -- shapes of files -------------------------------------------------------------------------------------------------------
def read_header(path: Path) -> tuple[Shapes, dict[str, str]]:
    """Shapes of the tensors in a safetensors file, and its metadata: 8 bytes of length, then JSON."""
    with Path(path).open("rb") as file:
        try:
            (length,) = struct.unpack("<Q", file.read(8))
            if length > 100_000_000:
                raise ValueError
            header = json.loads(file.read(length))
        except (struct.error, ValueError) as error:
            raise RecipeError(f"{path} is no safetensors file.") from error
    meta = header.pop("__metadata__", {})
    return {name: tuple(entry["shape"]) for name, entry in header.items()}, meta


def folder_shapes(folder: Path, files: str = "*.safetensors") -> Shapes:
    """Shapes of all tensors in a folder of safetensors; pieces of a cut tensor (`distill.checkpoint`) are put together."""
    whole: Shapes = {}
    for path in sorted(Path(folder).glob(files)):
        for key, shape in read_header(path)[0].items():
            name, cut, _ = key.partition("#")
            rows = whole[name][0] if cut and name in whole else 0
            whole[name] = (rows + shape[0], *shape[1:]) if cut else shape
    return whole


def transformer_facts(shapes: Shapes) -> dict[str, Any]:
    """What the shapes of a transformer's tensors, under any prefix, tell of its arguments."""
    found = {}
    for key, endings in _NAMES.items():
        names = [name for name in shapes for end in endings if name == end or name.endswith("." + end)]
        if names:
            found[key] = shapes[names[0]]
    facts: dict[str, Any] = {}
    if "patch" in found:
        width, channels, *patch = found["patch"]
        facts |= {"width": width, "in_channels": channels, "patch_size": tuple(patch)}
        if "out" in found:
            facts["out_channels"] = found["out"][0] // (patch[1] * patch[2])
        facts["num_layers"] = 1 + max((int(n.split("blocks.")[1].split(".")[0]) for n in shapes if "blocks." in n), default=-1)
    for key, name, axis in (("text", "text_dim", 1), ("time", "freq_dim", 1), ("ffn", "ffn_dim", 0), ("camera", "camera_dim", 0)):
        if key in found:
            facts[name] = found[key][axis]
    return facts


def _compare(facts: dict[str, Any], recipe: Recipe, stage: str, captions: int, channels: int, what: str, advice: str) -> None:
    """Refuse a transformer that is not the one of the recipe's stage; arguments that the recipe leaves open are the data's."""
    wanted = recipe.transformer(stage, in_channels=channels, out_channels=channels, text_dim=captions)
    for key, value in facts.items():
        if value != (expected := getattr(wanted, key)):
            if key == "in_channels" and value == 36:
                raise RecipeError(f"{what} is an image-to-video Wan transformer: give a text-to-video one.")
            name = "num_attention_heads x attention_head_dim" if key == "width" else key
            shown = [list(x) if isinstance(x, tuple) else x for x in (value, expected)]
            raise RecipeError(f"{what} has {name}={shown[0]}, the stage {stage} of the recipe {shown[1]}: {advice}.")


# -- the run ---------------------------------------------------------------------------------------------------------------
def is_model(folder: Path) -> bool:
    """Whether this is a world model's folder, with an autoencoder of its own; else it should hold a Wan transformer."""
    return (Path(folder) / "autoencoder").is_dir()


def wan_folder(recipe: Recipe, start_from: Path | None) -> Path | None:
    """Folder of Wan's autoencoder and text encoder: the recipe's `data.wan`, or `start_from` if it has both."""
    if recipe.data.wan:
        return Path(recipe.data.wan)
    if start_from is not None and (Path(start_from) / "vae").is_dir():
        return Path(start_from)
    return None


def check_run(recipe: Recipe, out: Path, start_from: Path | None = None, prompts: Path | None = None) -> None:
    """Raise RecipeError, one sentence, on the first thing that would stop the run later."""
    clip_files(recipe, out)
    facts = None if start_from is None else _start_facts(start_from)
    wan = wan_folder(recipe, start_from)
    captions, channels = _captions(recipe, wan, prompts), _channels(recipe, out, wan, start_from)
    stride = WAN_STRIDE if wan else PATCH
    for stage in recipe.stages:
        made = recipe.transformer(stage, in_channels=channels, out_channels=channels, text_dim=captions)
        if (made.in_channels, made.out_channels) != (channels, channels):
            hint = ": set data.wan to a folder of Wan 2.1 with vae/ and text_encoder/" if made.in_channels == WAN_CHANNELS else ""
            raise RecipeError(f"The stage {stage} has in_channels={made.in_channels}, the autoencoder {channels} channels{hint}.")
        if made.text_dim != captions:
            hint = ": give --prompts of UMT5, or set data.wan" if made.text_dim == UMT5 else ""
            raise RecipeError(f"The stage {stage} has text_dim={made.text_dim}, the captions' embeddings {captions}{hint}.")
        if any(pixels // stride % p for pixels, p in zip(recipe.data.shape, made.patch_size[1:], strict=True)):
            size = "x".join(str(pixels // stride) for pixels in recipe.data.shape)
            raise RecipeError(f"The stage {stage}: latents of {size} are no multiple of patch_size={list(made.patch_size)}.")
    _check_walks(recipe, out, channels, stride)
    if facts is not None:
        _compare(facts, recipe, recipe.stages[0], captions, channels, str(start_from), "change one of them")
    for stage in recipe.stages:
        shapes = folder_shapes(out / stage / "checkpoint", PARTS) or folder_shapes(out / stage / "checkpoint.old", PARTS)
        parts = {"": stage}
        if stage == "self_forcing":
            parts = {"model.generator.": stage, "model.fake.": "teacher"}
        for prefix, part in parts.items():
            facts = transformer_facts({n: s for n, s in shapes.items() if n.startswith(prefix or "model.")})
            if part == "teacher" and stage == "self_forcing" and recipe.self_forcing.score:
                continue
            _compare(facts, recipe, part, captions, channels, f"The checkpoint in {out / stage}", "use another --out")


def _captions(recipe: Recipe, wan: Path | None, prompts: Path | None) -> int:
    """Width of the captions' embeddings."""
    if prompts is None:
        return UMT5 if wan else MINILM
    if not Path(prompts).is_file():
        raise RecipeError(f"There is no file {prompts} (--prompts).")
    config = read_header(prompts)[1].get("text_config")
    if config is None:
        raise RecipeError(f"{prompts} is not a prompt cache: its metadata has no text_config.")
    return json.loads(config)["dim"]


def _channels(recipe: Recipe, out: Path, wan: Path | None, start_from: Path | None) -> int:
    """Channels of a latent, by the autoencoder that is used."""
    if wan:
        if not (wan / "vae" / "config.json").exists():
            raise RecipeError(f"{wan} has no vae/config.json: data.wan is a folder of Wan 2.1 in diffusers' layout.")
        return json.loads((wan / "vae" / "config.json").read_text()).get("z_dim", WAN_CHANNELS)
    done, a = out / "autoencoder" / "model" / "config.json", recipe.autoencoder
    given = Path(start_from) / "autoencoder" / "config.json" if start_from is not None and is_model(start_from) else None
    for config in (done, given):
        if config is not None and config.exists():
            return json.loads(config.read_text()).get("latent_channels", a.latent_channels)
    if 1 + 4 * (a.groups - 1) > recipe.data.frames:
        raise RecipeError(f"autoencoder.groups={a.groups} are {4 * a.groups - 3} frames, data.frames={recipe.data.frames} is less.")
    there = folder_shapes(out / "autoencoder" / "checkpoint", PARTS).get("model.linear_encoder.weight", (a.latent_channels,))[0]
    if there != a.latent_channels:
        where = out / "autoencoder"
        raise RecipeError(f"The checkpoint in {where} has latent_channels={there}, the recipe {a.latent_channels}: use another --out.")
    return a.latent_channels


def _check_walks(recipe: Recipe, out: Path, channels: int, stride: int) -> None:
    height, width = recipe.data.shape
    want = (recipe.data.latents, channels, height // stride, width // stride)
    for path in sorted((out / "walks").glob("*/walks-*.safetensors")):
        if (there := read_header(path)[0]["groups"][1:]) != want:
            raise RecipeError(f"{path} has latents {list(there)}, the recipe makes {list(want)}: use another --out or delete the folder.")


def _start_facts(start_from: Path) -> dict[str, Any]:
    """What is known of the transformer in `start_from`; of a .pt file nothing."""
    path = Path(start_from)
    if not path.exists():
        raise RecipeError(f"There is no {path} (--from).")
    if path.is_file():
        if path.suffix == ".safetensors":
            return _known(path, transformer_facts(read_header(path)[0]))
        if path.suffix in (".pt", ".pth"):
            return {}
        raise RecipeError(f"{path} (--from) is neither a folder nor a .safetensors or .pt file.")
    folder = path / "transformer" if (path / "transformer").is_dir() else path
    facts = _known(path, transformer_facts(folder_shapes(folder)))
    if (folder / "config.json").exists():
        stated = json.loads((folder / "config.json").read_text())
        facts |= {k: stated[k] for k in ("num_attention_heads", "prediction_type") if k in stated}
    return facts


def _known(path: Path, facts: dict[str, Any]) -> dict[str, Any]:
    if "width" not in facts:
        raise RecipeError(f"{path} (--from) holds no transformer: give a model's folder, a Wan transformer's folder or file.")
    return facts
