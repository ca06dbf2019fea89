"""`RuntimeConfig.context`: the memory from the last denoising step's keys and values, without the clean-context pass."""

import shutil

import numpy as np
import pytest
import torch
from small import picture, small_model
from viewing import with_views

import worldmodel.history as history_module
from worldmodel import Action
from worldmodel.batch import generate_together, step_together
from worldmodel.camera import pose_code
from worldmodel.memory import MemoryConfig, training_layout
from worldmodel.runtime import RuntimeConfig
from worldmodel.world_file import WorldError, WorldState

SCRIPT = "w*4 left*8 w+d*4 .*4 r+up*8"  # 7 chunks of one latent frame
REUSE = RuntimeConfig(context="last_step")
NARROW = RuntimeConfig(context="last_step", kv="float8", precision="bfloat16", overlap=True)


def frames(chunks):
    return np.concatenate([c.frames for c in chunks])


def memory_of(world):
    return {name: x.clone() for name, x in world.memory.state_dict().items()}


def same(a, b):
    """Whether two states of a memory are equal, bit for bit."""
    return a.keys() == b.keys() and all(torch.equal(x.float(), b[name].float()) for name, x in a.items())


class Passes:
    """What the transformer is given, pass by pass: latents and timesteps."""

    def __init__(self, model):
        self.given = []
        model.transformer.register_forward_pre_hook(lambda _, args: self.given.append((args[0].clone(), args[1].clone())))


# -- what is written --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("chunk, window, chunks", [(1, 3, 7), (2, 2, 4)])
def test_keys_are_those_of_one_masked_pass_over_the_last_steps_inputs(chunk, window, chunks):
    """The start picture clean, every chunk as its last step was given it: no cache, no order of passes, one mask."""
    model = small_model(chunk=chunk, memory=MemoryConfig(window=window, horizon=20)).use_runtime(REUSE)
    passes = Passes(model)
    world = model.start(picture(), "a village", seed=3)
    start = passes.given[-1][0]
    given = []
    for k in range(chunks):
        world.step(("w*4", "left*4", "d+up*4")[k % 3])
        given.append(passes.given[-1])
    assert len(passes.given) == 1 + chunks * model.config.sampler.steps  # nothing but the start picture's clean pass and denoising

    # in one pass
    times = torch.cat([torch.zeros(1, 1), *(t.reshape(1, 1).expand(1, chunk) for _, t in given)], 1)
    assert times.unique().tolist() == pytest.approx([0, 1000 / 1.2])  # two steps, shift 5: 1 and .5 * 5 / (1 + 4 * .5)
    latents = torch.cat([start, *(x for x, _ in given)], 2)
    actions = torch.from_numpy(world.actions)[None]
    poses = np.concatenate([np.eye(4)[None], *(p.poses for p in world._history)])
    layout = training_layout(model.config.memory, latents.shape[2], (4, 4), chunk)
    kept = []
    hooks = [b.attn1.norm_k.register_forward_hook(lambda *a: kept.append(a[2])) for b in model.transformer.blocks]
    with torch.no_grad():
        codes = torch.from_numpy(pose_code(poses))[None].float()
        model.transformer(latents, times, model.encode_prompt("a village"), actions, codes, layout=layout)
    for hook in hooks:
        hook.remove()
    memory, n = memory_of(world), 16 * window
    newest = memory["keys"][:, 0, :, -n:].transpose(1, 2)  # layers, tokens, heads, head_dim
    expected = torch.stack(kept)[:, 0, -n:].unflatten(2, (2, 12))
    assert torch.allclose(newest, expected, atol=2e-5)
    clean = model.start(picture(), "a village", seed=3).memory.state_dict()["keys"]
    assert torch.equal(memory["keys"][:, :, :, :16], clean)  # the start picture's, of whose 16 tokens RELIC's schedule keeps all


@pytest.mark.parametrize("policy", ["relic", "age", "retrieval", "visible"])
def test_the_camera_view_is_in_them(policy):
    """With views: another forward pass over what the last step was given, view and all, leaves the same memory."""
    model = with_views(memory=MemoryConfig(2, horizon=7, policy=policy)).use_runtime(REUSE)
    world = model.start(picture(), "a village", seed=1)
    list(world.stream(SCRIPT))
    calls = []
    model.transformer.register_forward_pre_hook(lambda _, args, kwargs: calls.append((args, kwargs)), with_kwargs=True)
    before = world.fork()
    world.step("w+left*4")
    (args, kwargs), again = calls[-1], before.plan("w+left*4")
    assert kwargs["view"] is not None and len(calls) == 2
    with torch.no_grad():
        model.transformer(*args, camera=kwargs["camera"], view=again.view, memory=before.memory, write=True)
    assert same(memory_of(before), memory_of(world))
    without = model.start(picture(), "a village", seed=1)
    list(without.stream(SCRIPT))
    without.plan("w+left*4")
    with torch.no_grad():
        model.transformer(*args, camera=kwargs["camera"], memory=without.memory, write=True)
    assert not same(memory_of(without), memory_of(world))


def test_nothing_is_computed_after_the_frames_have_left():
    model = small_model().use_runtime(REUSE)
    passes, world = Passes(model), model.start(picture())
    world.generate("w*4")
    made, count = len(passes.given), world.memory.count
    world.finalize()
    assert len(passes.given) == made and world.memory.count == count + 1
    plain = small_model()
    passes, world = Passes(plain), plain.start(picture())
    world.step("w*4")
    assert len(passes.given) == made + 1 and passes.given[-1][1] == 0  # as it is by default


def test_latents_that_are_given_get_a_clean_pass():
    """They were not denoised here: as without the switch."""
    worlds = [model.start(picture(), "a village") for model in (small_model(), small_model().use_runtime(REUSE))]
    for world in worlds:
        world.generate_from(torch.ones_like(world.last_latents), Action.idle())
        world.finalize()
    assert same(*map(memory_of, worlds))


def test_a_start_made_from_the_prompt_is_written_clean():
    worlds = [model.start(None, "a village", seed=1) for model in (small_model(), small_model().use_runtime(REUSE))]
    assert same(*map(memory_of, worlds))


# -- going back -------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("runtime", [REUSE, NARROW], ids=["plain", "fp8 and bf16"])
@pytest.mark.parametrize("policy, chunk", [("relic", 1), ("relic", 2), ("age", 1), ("retrieval", 1), ("visible", 1)])
def test_rewind_fork_and_files_are_exact(policy, chunk, runtime, tmp_path, monkeypatch):
    monkeypatch.setattr(history_module, "SNAPSHOT_EVERY", 3)
    model = with_views(memory=MemoryConfig(2, horizon=7, policy=policy), chunk=chunk).use_runtime(runtime)
    world = model.start(picture(), "a village", seed=2)
    list(world.stream("w*8 left*16"))
    world.prompt = "a desert"
    list(world.stream(SCRIPT))
    here = memory_of(world)
    world.save(tmp_path / "all.world")
    world.save(tmp_path / "least.world", history=0)
    others = [world.fork(), *(model.load_world(tmp_path / f"{name}.world") for name in ("all", "least"))]
    after = frames(world.stream("left*8 w*8"))
    for other in others:
        assert same(memory_of(other), here)
        assert np.array_equal(frames(other.stream("left*8 w*8")), after)
    for other in (world, others[1]):
        other.rewind(16 // model.chunk_frames)
        assert same(memory_of(other), here)
        assert np.array_equal(frames(other.stream("left*8 w*8")), after)
        other.rewind(other.index - 8 // model.chunk_frames)  # to before the other prompt
        list(other.stream("left*16"))
        other.prompt = "a desert"
        list(other.stream(SCRIPT))
        assert same(memory_of(other), here)


@pytest.mark.parametrize("first, then", [(REUSE, RuntimeConfig()), (RuntimeConfig(), REUSE)], ids=["reused first", "clean first"])
def test_worlds_open_under_the_other_setting(first, then, tmp_path):
    """Each chunk is written again as it was written first, whatever holds now."""
    one, other = (with_views(memory=MemoryConfig(2, horizon=9)).use_runtime(r) for r in (first, then))
    world = one.start(picture(), "a village", seed=2)
    list(world.stream("w*8 left*8"))
    past = memory_of(world)
    list(world.stream("d*8"))
    world.save(tmp_path / "a.world")
    opened = other.load_world(tmp_path / "a.world")
    assert same(memory_of(opened), memory_of(world))
    list(opened.stream("w*8"))
    assert [p.last_step is None for p in opened._history] == [first != REUSE] * 6 + [then != REUSE] * 2
    mixed = memory_of(opened)
    opened.save(tmp_path / "b.world")
    opened.rewind(4)
    assert same(memory_of(opened), past)
    back = one.load_world(tmp_path / "b.world")
    assert same(memory_of(back), mixed)
    back.rewind(1)
    opened = other.load_world(tmp_path / "b.world")
    opened.rewind(1)
    assert same(memory_of(back), memory_of(opened))


def test_the_number_of_steps_may_change_between(tmp_path):
    model = with_views().use_runtime(REUSE)
    world = model.start(picture(), "a village", seed=2)
    list(world.stream("w*12"))
    before = memory_of(world)
    world.save(tmp_path / "a.world")
    more = model.with_steps(3).load_world(tmp_path / "a.world")
    more.step("left*4")
    more.rewind(1)
    assert same(memory_of(more), before)


def test_files_with_last_steps_of_other_chunks_are_refused(tmp_path):
    model = small_model().use_runtime(REUSE)
    world = model.start(picture())
    list(world.stream("w*8"))
    state = world.state()
    assert state.tensors["reused"].tolist() == [0, 1]
    for change in (
        {"reused": torch.tensor([0, 2])}, {"reused": torch.tensor([1, 0])}, {"reused": torch.tensor([0])},
        {"timesteps": torch.tensor([1.0])}, {"timesteps": torch.tensor([1.0, float("nan")])}, {"timesteps": torch.tensor([1.0, 2e3])},
        {"last_steps": torch.full_like(state.tensors["last_steps"], float("inf"))},
    ):  # fmt: skip
        WorldState(state.tensors | change, state.meta).save(tmp_path / "a.world")
        with pytest.raises(WorldError, match="not a readable world file"):
            model.load_world(tmp_path / "a.world")


def test_what_is_let_go_of_costs_nothing():
    world = with_views(memory=MemoryConfig(2, horizon=7)).use_runtime(REUSE).start(picture(), "a village", history=0)
    sizes = []
    for k in range(40):
        world.step(("w*4", "left*4")[k % 2])
        sizes.append(world.num_bytes)
    assert max(sizes[20:]) <= max(sizes[:20])
    assert sum(p.last_step is not None for p in world._history) <= 7


# -- several worlds, and failures -------------------------------------------------------------------------------------------
@pytest.mark.parametrize("policy", ["relic", "retrieval"])
def test_together_is_as_alone(policy):
    model = with_views(torch.float64, memory=MemoryConfig(2, horizon=7, policy=policy)).use_runtime(REUSE)

    def worlds():
        made = [model.start(picture(i), f"a village {i}", seed=i) for i in range(3)]
        for i, world in enumerate(made):
            list(world.stream("w*4 left*4 d*4 " * (i + 1)))
        return made

    alone, batch = worlds(), worlds()
    for k in range(3):
        actions = [("w*4", "left*4", "d+up*4")[(i + k) % 3] for i in range(3)]
        each = [world.step(a) for world, a in zip(alone, actions, strict=True)]
        for a, b in zip(each, step_together(batch, actions), strict=True):
            assert np.array_equal(a.frames, b.frames)
    for a, b in zip(alone, batch, strict=True):
        assert all(torch.allclose(x, y, atol=1e-10) for x, y in zip(memory_of(a).values(), memory_of(b).values(), strict=True))
        assert torch.allclose(a._history[-1].last_step.latents, b._history[-1].last_step.latents, atol=1e-10)
    # what was made together is written again alone, after going back
    kept = memory_of(batch[1])
    batch[1].step("w*4")
    batch[1].rewind(1)
    assert all(torch.allclose(x, y, atol=1e-10) for x, y in zip(kept.values(), memory_of(batch[1]).values(), strict=True))


@pytest.mark.parametrize("runtime", [REUSE, NARROW], ids=["plain", "fp8 and bf16"])
def test_a_chunk_that_fails_leaves_nothing(runtime, monkeypatch):
    """The keys lie in the memory before the frames are decoded; until the chunk is accepted they do not count."""
    model = with_views().use_runtime(runtime)
    one, other = (model.start(picture(), "a village", seed=4) for _ in range(2))
    for world in (one, other):
        list(world.stream("w*8"))
    with monkeypatch.context() as patch:
        patch.setattr(model.autoencoder, "decode_chunk", _fail)
        with pytest.raises(MemoryError):
            generate_together([one], ["d*4"])
    assert one.pending is None and same(memory_of(one), memory_of(other))
    assert np.array_equal(frames(one.stream("left*8")), frames(other.stream("left*8")))
    assert same(memory_of(one), memory_of(other))


def _fail(*_, **__):
    raise MemoryError


def test_worlds_in_between_do_not_disturb_what_is_to_be_written():
    model = with_views().use_runtime(REUSE)
    one, other, third = (model.start(picture(), "a village", seed=4) for _ in range(3))
    for _ in range(3):
        one.step("w*4")
        other.generate("w*4")
        third.step("left*4")
        other.finalize()
    assert same(memory_of(one), memory_of(other))


# -- beside other switches --------------------------------------------------------------------------------------------------
def test_overlap_has_nothing_left_to_do():
    a, b = (with_views().use_runtime(r).start(picture(), seed=1) for r in (REUSE, RuntimeConfig(context="last_step", overlap=True)))
    assert np.array_equal(frames(a.stream(SCRIPT)), frames(b.stream(SCRIPT)))
    assert same(memory_of(a), memory_of(b))


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="compiling for the CPU needs g++")
def test_compiled_blocks_write_the_same():
    torch._dynamo.reset()
    plain, compiled = (small_model().use_runtime(r) for r in (REUSE, RuntimeConfig(context="last_step", compile="blocks")))
    a, b = (model.start(picture(), "a village", seed=1) for model in (plain, compiled))
    for world in (a, b):
        list(world.stream(SCRIPT))
    assert all(torch.allclose(x, y, atol=1e-3) for x, y in zip(memory_of(a).values(), memory_of(b).values(), strict=True))


def test_the_default_is_the_clean_pass():
    assert RuntimeConfig().context == "clean"
    a, b = (small_model().use_runtime(r).start(picture(), seed=1) for r in (RuntimeConfig(), REUSE))
    list(a.stream(SCRIPT)), list(b.stream(SCRIPT))
    assert not same(memory_of(a), memory_of(b)) and "reused" not in a.state().tensors
