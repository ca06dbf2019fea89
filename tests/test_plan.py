"""The calculator against the known sizes of Wan, against what autograd really keeps, and against a FLOP counter."""

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from distill.plan import activation_bytes, count_parameters, forward_flops, geometry, main, make_plan, seen_tokens
from distill.recipe import load_recipe
from worldmodel.memory import RELIC_SCHEDULE, MemoryConfig
from worldmodel.transformer import CausalWorldTransformer


@pytest.mark.parametrize(("name", "billions"), [("wan-1.3b", 1.419), ("wan-14b", 14.289)])
def test_parameters_are_wans_and_the_camera_parts(name, billions):
    arguments, *_ = geometry(load_recipe(name))
    model, total, camera = count_parameters(arguments)
    dim, c = model.config.num_attention_heads * 128, 256
    encoders = (52 * c + c) + (36 * c + c) + 2 * (c * c + c)  # 13 magnitudes and 9 numbers of a pose, of four frames
    assert camera == encoders + model.config.num_layers * 3 * (c + 1) * dim
    assert (total - camera) / 1e9 == pytest.approx(billions, abs=1e-3)


def kept_bytes(model, inputs):
    """Bytes of all storages that autograd keeps, without parameters."""
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    storages = {}

    def pack(x):
        s = x.untyped_storage()
        if s.data_ptr() not in own:
            storages[s.data_ptr()] = (s.nbytes(), x)
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        out = model(*inputs)
    assert out.requires_grad
    return sum(n for n, _ in storages.values())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("ffn", [128, 512])
def test_activations_are_what_autograd_keeps(dtype, checkpointing, ffn):
    torch.manual_seed(0)
    config = dict(num_attention_heads=2, attention_head_dim=64, in_channels=4, out_channels=4, text_dim=16, freq_dim=16, ffn_dim=ffn)
    kept = {}
    inputs = (torch.randn(1, 4, 6, 16, 16).to(dtype), torch.tensor([500.0]), torch.randn(1, 32, 16).to(dtype))
    for layers in (2, 6):
        model = CausalWorldTransformer(**config, num_layers=layers, camera_dim=8).to(dtype)
        if checkpointing:
            model.enable_gradient_checkpointing()
        kept[layers] = kept_bytes(model, inputs)
    tokens, size = 6 * 64, dtype.itemsize
    shape = dict(dim=128, ffn_dim=ffn, text=32, size=size, checkpointing=checkpointing)
    want = activation_bytes(tokens, layers=6, **shape) - activation_bytes(tokens, layers=2, **shape)
    assert kept[6] - kept[2] == pytest.approx(want, rel=0.15)  # four blocks: what is kept once, outside them, drops out


def test_flops_are_what_a_counter_counts():
    config = dict(num_attention_heads=2, attention_head_dim=16, in_channels=4, out_channels=4, text_dim=16, freq_dim=16, ffn_dim=64)
    model = CausalWorldTransformer(**config, num_layers=2, camera_dim=8)
    x, text = torch.randn(1, 4, 5, 16, 16), model.encode_text(torch.randn(1, 12, 16))
    # the counter knows attention only as plain matrix products
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model(x, torch.tensor([500.0]), text)
    assert forward_flops(model.config, 320, 320, 12) == pytest.approx(counter.get_total_flops(), rel=0.02)


def test_memory_after_twenty_seconds_is_relics():
    grid = (30, 52)
    seen = seen_tokens(MemoryConfig(window=8, horizon=80), 80, grid)
    by_hand = 8 * 1560 + sum(-(-30 // s) * -(-52 // s) for s in (RELIC_SCHEDULE[i % 18] for i in range(72)))
    assert seen == by_hand and 124_800 / seen == pytest.approx(4.0, abs=0.1)


def test_plan_of_a_large_model(capsys):
    eight, many = (make_plan(load_recipe("wan-14b"), gpus) for gpus in (8, 32))
    assert eight.tokens == 124_800
    sharded = "optimiser states (adamw): generator"
    assert eight.memory[sharded] == 4 * many.memory[sharded] == pytest.approx(8 * eight.parameters / 8)
    assert many.total < eight.total
    a = eight.activations
    assert a["generator, replay and checkpointing"] < a["generator, whole video, checkpointing"] < a["generator, whole video"]
    short = make_plan(load_recipe("wan-14b"), 8, latents=21)
    assert short.flops["fake score"] < eight.flops["fake score"] * 21 / 80  # attention grows with the square
    assert main(["tiny", "--gpus", "1", "--latents", "12"]) == 0
    assert "12 latents x 64 = 768" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main(["gigantic"])
