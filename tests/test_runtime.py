"""Each switch of how a model runs, against the plain way."""

import copy
import shutil
import sys
from itertools import islice

import numpy as np
import pytest
import torch
from small import picture, small_model

from worldmodel import Action, batch
from worldmodel.batch import step_together
from worldmodel.cli import main
from worldmodel.memory import MemoryConfig
from worldmodel.model import WorldModel
from worldmodel.runtime import RuntimeConfig, RuntimeSwitchError, apply_runtime, fast_bfloat16
from worldmodel.server.config import ConfigError, ServeConfig

SCRIPT = "w*8 w+left*12 d*8 up*8 s+right*12"  # 12 chunks: the memory pools and forgets
BF16 = RuntimeConfig(precision="bfloat16")
FLOAT8 = RuntimeConfig(kv="float8")
ALL = RuntimeConfig(precision="bfloat16", kv="float8", overlap=True)


def latents_of(model, script=SCRIPT):
    """Latents of every chunk, one step in one world."""
    world = model.start(picture(), "a snowy village", seed=3)
    out = []
    for _ in world.stream(script):
        out.append(world.last_latents)
    return torch.cat(out, 2)


def error(a, b):
    return float((a - b).norm() / b.norm())


@pytest.fixture(scope="module")
def plain():
    return latents_of(small_model())


def test_defaults_change_nothing(plain):
    assert torch.equal(latents_of(small_model().use_runtime(RuntimeConfig())), plain)


def test_bfloat16_blocks_are_near_and_the_rest_stays_fine(plain):
    model = small_model().use_runtime(BF16)
    block = model.transformer.blocks[0]
    assert block.attn1.to_q.weight.dtype == block.ffn.net[2].weight.dtype == torch.bfloat16
    assert block.attn1.norm_q.weight.dtype == block.norm2.weight.dtype == block.scale_shift_table.dtype == torch.float32
    assert model.transformer.proj_out.weight.dtype == model.transformer.pose_encoder[0].weight.dtype == torch.float32
    assert model.new_memory().keys.dtype == torch.bfloat16
    assert model.encode_prompt("a village")[0][0].dtype == torch.bfloat16
    got = latents_of(model)
    assert got.dtype == torch.float32
    assert 0 < error(got, plain) < 0.02


def test_auto_is_bfloat16_where_that_is_fast():
    model = small_model().use_runtime(RuntimeConfig(precision="auto"))
    fast = fast_bfloat16(torch.device("cpu"))
    can = torch.cpu.get_capabilities()
    assert fast == any(can.get(name) for name in ("amx_bf16", "avx512_bf16"))
    assert model.new_memory().keys.dtype == (torch.bfloat16 if fast else torch.float32)


def test_float8_memory_is_a_sixth_and_within_its_rounding(plain):
    whole, model = small_model(), small_model().use_runtime(FLOAT8)
    kept = model.new_memory()
    assert kept.keys.dtype == torch.float8_e4m3fn
    assert 6 * kept.num_bytes == whole.new_memory().num_bytes  # turned keys are not kept
    assert 0 < error(latents_of(model), plain) < 0.05
    # what is kept is within half a unit of E4M3's last place: 2**-4 of each number, 2**-10 near zero
    world, exact = (m.start(picture(), "a", seed=1) for m in (model, whole))
    a, b = world.memory.state_dict()["keys"].float(), exact.memory.state_dict()["keys"]
    assert ((a - b).abs() <= b.abs() * 2**-4 + 2**-10).all()


def test_float8_memory_keeps_large_numbers_finite():
    memory = small_model().use_runtime(FLOAT8).new_memory()
    n, width = memory.tokens_per_latent, memory.keys.shape[2:]
    big = [torch.full((1, n, width[0], width[2]), 1e4) for _ in range(2)]
    memory.write(big, [-x for x in big])
    assert memory.keys[:, :, :, :n].float().eq(448).all() and memory.values[:, :, :, :n].float().eq(-448).all()


@pytest.mark.parametrize("runtime", [BF16, FLOAT8, ALL], ids=["bf16", "fp8", "all"])
def test_worlds_stay_exact(tmp_path, runtime):
    """Rewind, fork, save and load: bit for bit, with every switch."""
    model = small_model().use_runtime(runtime)
    world = model.start(picture(), "a village", seed=2)
    for _ in world.stream("w*16 left*16"):
        pass
    world.save(tmp_path / "there.world")
    loaded, fork = model.load_world(tmp_path / "there.world"), world.fork()
    after = [c.frames for c in world.stream("up*8")]
    for other in (loaded, fork):
        assert all(np.array_equal(a, c.frames) for a, c in zip(after, other.stream("up*8"), strict=True))
    world.rewind(6)
    again = [c.frames for c in world.stream("left*16 up*8")]
    assert all(np.array_equal(a, b) for a, b in zip(after, again[-2:], strict=True))


@pytest.mark.parametrize("runtime", [BF16, FLOAT8], ids=["bf16", "fp8"])
def test_worlds_together_are_as_alone(runtime):
    model = small_model().use_runtime(runtime)
    together, alone = ([model.start(picture(i), "a village", seed=i) for i in range(2)] for _ in range(2))
    for _ in alone[0].stream("w*8"), together[0].stream("w*8"):
        list(_)
    for _ in range(3):
        made = step_together(together, [Action.idle(), Action.from_keys({"KeyW"})])
        each = [alone[0].step(Action.idle()), alone[1].step(Action.from_keys({"KeyW"}))]
        for a, b in zip(made, each, strict=True):
            assert np.abs(a.frames.astype(int) - b.frames.astype(int)).max() <= 1


def test_overlap_changes_no_frame_and_passes_early(plain):
    model = small_model().use_runtime(RuntimeConfig(overlap=True))
    assert torch.equal(latents_of(model), plain)
    world, passes = model.start(picture(), seed=0), []
    model.transformer.register_forward_pre_hook(lambda *_: passes.append(1))
    world.generate(Action.idle())
    made, count = len(passes), world.memory.count
    assert made == model.config.sampler.steps + 1
    world.finalize()
    assert len(passes) == made and world.memory.count == count + 1 == world.latents_finalized


def test_overlap_leaves_nothing_of_a_chunk_that_fails(plain, monkeypatch):
    """The clean pass is over when fetching the frames fails."""
    model = small_model().use_runtime(RuntimeConfig(overlap=True))
    world = model.start(picture(), "a snowy village", seed=3)
    with monkeypatch.context() as patch:
        patch.setattr(model, "to_pixels", lambda _: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            world.generate("d*4")
    assert torch.equal(torch.cat([world.last_latents for _ in world.stream(SCRIPT)], 2), plain)


def test_streaming_ahead_reads_frames_after_the_next_chunk_is_made(plain, monkeypatch):
    """The order of work that lets CUDA decode one chunk beside the next one's denoising: the same frames, bit for bit."""
    model, log = small_model().use_runtime(RuntimeConfig(overlap=True)), []

    def logged(pixels, fetch_late=batch.on_their_way):
        fetch, made = fetch_late(pixels), sum("made" in entry for entry in log)
        log.append(f"made {made}")
        return lambda: log.append(f"read {made}") or fetch()

    monkeypatch.setattr(batch, "on_their_way", logged)
    ahead = list(model.start(picture(), "a snowy village", seed=3).stream("w*8 left*10", ahead=True))
    assert log == ["made 0", "made 1", "read 0", "made 2", "read 1", "made 3", "read 2", "made 4", "read 3", "read 4"]
    world = small_model().start(picture(), "a snowy village", seed=3)
    for k, (chunk, want) in enumerate(zip(ahead, world.stream("w*8 left*10"), strict=True)):
        assert chunk.index == k and np.array_equal(chunk.frames, want.frames) and np.array_equal(chunk.actions, want.actions)
        assert chunk.timings.keys() == want.timings.keys()
    other = model.start(picture(), "a snowy village", seed=3)
    assert torch.equal(torch.cat([other.last_latents for _ in other.stream(SCRIPT)], 2), plain)  # what does not stream ahead waits


def test_a_world_that_streams_ahead_can_be_left_at_any_time(tmp_path):
    """A chunk further than what was given: saved, forked, gone back in and fed, as if it had been stepped."""
    model = small_model().use_runtime(RuntimeConfig(overlap=True))
    world, stepped = (model.start(picture(), "a village", seed=2) for _ in range(2))
    assert [chunk.index for chunk in islice(world.stream("w*16 left*24", ahead=True), 8)] == [*range(8)]
    for _ in range(9):
        stepped.step("w*4" if stepped.index < 4 else "left*4")
    assert world.index == stepped.index == 9 and np.array_equal(world.last_frame, stepped.last_frame)
    world.save(tmp_path / "there.world")
    worlds = [world, world.fork(), model.load_world(tmp_path / "there.world")]
    want = [stepped.step("d*4").frames, stepped.generate_from(stepped.last_latents, "up*4").frames]
    for other in worlds:
        got = [other.step("d*4").frames, other.generate_from(other.last_latents, "up*4").frames]
        assert all(np.array_equal(a, b) for a, b in zip(got, want, strict=True))
    for other in (world, stepped):
        other.rewind(4)
    assert np.array_equal(world.last_frame, stepped.last_frame) and np.array_equal(world.step("s*4").frames, stepped.step("s*4").frames)


def test_offloaded_layers_compute_the_same(plain):
    assert torch.equal(latents_of(small_model().use_runtime(RuntimeConfig(offload="layers"))), plain)


@pytest.mark.parametrize("policy", ["age", "retrieval", "visible"])
def test_other_memories_in_float8(policy):
    memory = MemoryConfig(window=3, horizon=10, policy=policy, budget=400 if policy != "age" else 0)
    plain, narrow = latents_of(small_model(memory=memory)), latents_of(small_model(memory=memory).use_runtime(FLOAT8))
    assert 0 < error(narrow, plain) < 0.05


# -- attention --------------------------------------------------------------------------------------------------------------
def test_attention_backends_agree(plain):
    model = small_model().use_runtime(RuntimeConfig(attention="_native_math"))
    assert {b.attn1.backend.value for b in model.transformer.blocks} == {"_native_math"}
    assert torch.allclose(latents_of(model), plain, atol=1e-4)


@pytest.mark.parametrize(
    "name, says", [("flash", "flash-attn"), ("sage", "sageattention"), ("_native_cudnn", "cpu"), ("fast", "diffusers has")]
)
def test_a_backend_that_is_not_here_is_refused_by_name(name, says):
    with pytest.raises(RuntimeSwitchError, match=name) as caught:
        small_model().use_runtime(RuntimeConfig(attention=name))
    assert says in str(caught.value)


# -- torchao ----------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("kind, bound", [("int8", 0.03), ("float8", 0.08)])
def test_quantised_linears_are_near(plain, kind, bound):
    pytest.importorskip("torchao")
    model = small_model()
    before = copy.deepcopy(model.transformer.proj_out.weight)
    got = latents_of(model.use_runtime(RuntimeConfig(linears=kind)))
    assert torch.equal(model.transformer.proj_out.weight, before)  # blocks only
    assert 0 < error(got, plain) < bound


def test_without_torchao_it_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchao", None)
    monkeypatch.setitem(sys.modules, "torchao.quantization", None)
    with pytest.raises(RuntimeSwitchError, match=r"pip install worldmodel\[quant\]"):
        small_model().use_runtime(RuntimeConfig(linears="int8"))


# -- compilation ------------------------------------------------------------------------------------------------------------
def test_graphs_need_cuda():
    if torch.cuda.is_available():
        pytest.skip("CUDA is here")
    with pytest.raises(RuntimeSwitchError, match="compile='blocks'"):
        small_model().use_runtime(RuntimeConfig(compile="graphs"))


def test_without_a_compiler_it_says_so(monkeypatch):
    monkeypatch.setenv("CXX", "/no/such/compiler")
    with pytest.raises(RuntimeSwitchError, match="there is no /no/such/compiler"):
        small_model().use_runtime(RuntimeConfig(compile="blocks"))


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="compiling for the CPU needs g++")
def test_compiled_blocks_are_near_and_are_compiled_once(plain):
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    got = latents_of(small_model().use_runtime(RuntimeConfig(compile="blocks")))
    assert torch.allclose(got, plain, atol=1e-3)
    # before and after, for one latent frame: not once a block, nor once a length of the memory
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 2


# -- saying what is wrong ---------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "switch", [{"precision": "half"}, {"kv": "int4"}, {"compile": "all"}, {"context": "noisy"}, {"linears": "int8", "offload": "layers"}],
)
def test_unknown_switches_are_refused(switch):
    with pytest.raises(ValueError, match="precision|kv|compile|context|choose offload or linears"):
        RuntimeConfig(**switch)


def test_a_switch_that_cannot_be_used_ends_the_command_with_one_line(capsys):
    assert main(["generate", "--image", "red canyon", "--attention", "sage", "--out", "x.mp4"]) == 2
    assert "sageattention" in capsys.readouterr().err


def test_a_server_reads_switches_from_its_config():
    assert ServeConfig.from_dict({"runtime": {"kv": "float8"}}).runtime == FLOAT8
    with pytest.raises(ConfigError, match=r"\[runtime\]: kv is one of same, float8, got 'int4'"):
        ServeConfig.from_dict({"runtime": {"kv": "int4"}})


def test_quantised_worlds_can_be_saved(tmp_path):
    pytest.importorskip("torchao")
    model = small_model().use_runtime(RuntimeConfig(linears="int8"))
    world = model.start(picture(), "a village", seed=2)
    world.save(tmp_path / "there.world")
    assert np.array_equal(model.load_world(tmp_path / "there.world").step("w*4").frames, world.step("w*4").frames)


def test_models_made_by_with_config_run_alike():
    model = small_model().use_runtime(BF16)
    assert isinstance(model.with_steps(1), WorldModel) and model.with_steps(1).runtime == BF16
    apply_runtime(small_model().transformer, RuntimeConfig())  # a transformer alone
