"""A model that is too large is refused before it is loaded, by counts that equal what loading it would take."""

from dataclasses import replace

import pytest
import torch
import wan_files
from diffusers import AutoencoderKLWan

from worldmodel import fitting
from worldmodel.autoencoder import WanAutoencoder
from worldmodel.convert import WanCheckpoint
from worldmodel.fitting import GIB, TooLargeError, Wish
from worldmodel.loading import _options, _text_bytes, find_text
from worldmodel.memory import MemoryConfig
from worldmodel.model import WorldModel
from worldmodel.runtime import RuntimeConfig
from worldmodel.text import TextConfig
from worldmodel.transformer import CausalWorldTransformer

SMALL = dict(size=wan_files.SIZE, text=TextConfig("umt5", 8, 24), transformer=dict(camera_dim=8))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return wan_files.write_diffusers(tmp_path_factory.mktemp("wan") / "small")


def bytes_of(tensors):
    return sum(t.numel() * t.element_size() for t in tensors)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_counts_are_those_of_the_loaded_model(folder, dtype):
    model = WorldModel.from_wan(folder, dtype=dtype, **SMALL)
    with torch.device("meta"):
        empty = CausalWorldTransformer.from_config(dict(model.transformer.config))
        vae = AutoencoderKLWan.from_config(model.autoencoder.vae.config)
    counted = fitting.need(Wish(empty, WanAutoencoder(vae), model.config.memory, model.size, model.config.chunk, dtype))
    modules = [model.transformer, model.autoencoder.vae]
    assert counted.weights == sum(bytes_of(m.state_dict().values()) for m in modules)
    assert counted.memory == model.new_memory().num_bytes
    latents = torch.zeros(1, *model.latent_shape, dtype=dtype).transpose(0, 1)[None]
    state = model.autoencoder.advance(latents.expand(-1, -1, 2, -1, -1))
    assert counted.decoder == bytes_of(x for x in state if isinstance(x, torch.Tensor))
    assert counted.total > counted.weights + counted.memory + counted.decoder


def test_nothing_is_loaded_when_it_does_not_fit(folder, monkeypatch):
    monkeypatch.setattr(WanCheckpoint, "load", lambda *a, **k: pytest.fail("loaded"))
    monkeypatch.setattr(fitting, "free_bytes", lambda device: 1000)
    with pytest.raises(TooLargeError, match="small needs .* and cpu has 0.0 GiB free. The least .* a smaller model or a larger device"):
        WorldModel.from_wan(folder, **SMALL)
    monkeypatch.setattr(CausalWorldTransformer, "from_pretrained", lambda *a, **k: pytest.fail("loaded"))
    with pytest.raises(TooLargeError, match="tiny needs"):
        WorldModel.from_pretrained("tiny")


def test_a_text_encoder_on_the_device_is_counted_from_its_files(folder, tmp_path):
    encoder = bytes_of(wan_files.umt5().parameters()) // 2  # bfloat16
    for place in (folder, wan_files.write_original(tmp_path / "original")):
        assert _text_bytes(find_text(place, SMALL["text"], "cpu"), torch.device("cpu")) == encoder
        assert _text_bytes(find_text(place, SMALL["text"], "cpu"), torch.device("cuda")) == 0


def test_check_can_be_left_out(folder, monkeypatch):
    monkeypatch.setattr(fitting, "free_bytes", lambda device: 1000)
    assert WorldModel.from_wan(folder, check=False, **SMALL).transformer.config.num_layers == 2


def wan(large, memory, dtype=torch.bfloat16, text=0):
    with torch.device("meta"):
        sizes = {} if large else dict(num_attention_heads=12, num_layers=30, ffn_dim=8960)
        return Wish(CausalWorldTransformer(**sizes), WanAutoencoder(AutoencoderKLWan()), memory, (480, 832), 3, dtype, text)


def test_the_released_sizes_on_cards_that_people_have(monkeypatch):
    """Weights as published, cache as by hand: 14.3 and 1.4 billion parameters; tokens x layers x width x 3 buffers x 2 bytes."""
    relic = MemoryConfig()
    small, large = wan(False, relic), wan(True, relic)
    with torch.device("meta"):
        capacity = small.transformer.new_memory(relic, (60, 104), chunk=3).capacity
    for wish, parameters, layers, width in ((small, 1.42e9, 30, 1536), (large, 14.29e9, 40, 5120)):
        counted = fitting.need(wish)
        assert counted.weights == pytest.approx(2 * (parameters + 0.127e9), rel=0.03)
        assert counted.memory == capacity * layers * width * 3 * 2
    text = 11 * GIB  # UMT5-XXL in bfloat16

    def on(gigabytes, wish, **kwargs):
        monkeypatch.setattr(fitting, "free_bytes", lambda device: gigabytes * GIB)
        fitting.check(wish, torch.device("cuda"), "wan", _options(wish, torch.device("cuda"), True, **kwargs))

    on(24, small)
    with pytest.raises(TooLargeError, match=r"text 11.0 GiB.*What fits: text_device='cpu': \d"):
        on(24, wan(False, relic, text=text))
    ways = r"What fits: runtime=RuntimeConfig\(kv='float8'\): .*memory=MemoryConfig\(window=8, .*Wan 1.3B: "
    with pytest.raises(TooLargeError, match=ways):
        on(80, large, large=True)
    with pytest.raises(TooLargeError, match=r"What fits: .*runtime=RuntimeConfig\(kv='float8', offload='layers'\): .*Wan 1.3B: "):
        on(24, large, large=True)
    with pytest.raises(TooLargeError, match=r"What fits: .*text_device='cpu' and dtype=torch.bfloat16: \d"):
        on(24, wan(False, relic, torch.float32, text))
    narrow = replace(large, runtime=RuntimeConfig(kv="float8"))
    assert 3 * fitting.need(narrow).memory == fitting.need(large).memory
