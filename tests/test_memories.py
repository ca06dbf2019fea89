"""Rival memories: what each holds against plain loops, what it costs, and worlds that go back, apart and into files with each."""

import math

import numpy as np
import pytest
import torch
from small import picture, small_model

import worldmodel.history as history_module
import worldmodel.world as world_module
from distill.dmd import Condition
from distill.replay import full_graph_backward, replay_backward
from distill.rollout import RollOutConfig, roll_out
from worldmodel.actions import as_actions, to_array
from worldmodel.camera import integrate, pose_code
from worldmodel.camera_view import FADED, FADES, FAR_AWAY
from worldmodel.configs import MEMORY_NAMES, RELIC_SCHEDULE, MemoryConfig
from worldmodel.memories import USUAL_FOCAL, AgeMemory, RetrievalMemory, VisibleMemory, directions, new_memory
from worldmodel.memory import CompressedMemory, pool_cells, token_positions, training_layout
from worldmodel.model import WorldModel
from worldmodel.sampling import SamplerConfig
from worldmodel.transformer import CausalWorldTransformer
from worldmodel.world import WorldError

GRID, N = (4, 4), 16


def latent_codes(script):
    """Pose codes [1 + T, 9] of the start picture and of the last frame of every four under a script"""
    poses = integrate(to_array(as_actions(script)))
    return torch.from_numpy(pose_code(np.concatenate([np.eye(4)[None], poses])))[::4]


def make(config, chunk=1, grid=GRID):
    return new_memory(config, layers=2, heads=2, head_dim=6, grid=grid, chunk=chunk)


def key_of(i, n=N):
    """Key [1, n, heads, head_dim] of latent frame i; layer l has `key + l`, values are twice the key"""
    return torch.randn(1, n, 2, 6, generator=torch.Generator().manual_seed(i))


def write(memory, codes, begin=0, chunk=1, each=lambda memory: None):
    """Write latent frames begin.. of a walk; `each` is called after every look."""
    i = begin
    while i < len(codes):
        end = min(len(codes), 1 if i == 0 else i + chunk)
        memory.look(codes[None, i:end])
        each(memory)
        k = torch.cat([key_of(j, memory.tokens_per_latent) for j in range(i, end)], 1)
        memory.write([k, k + 1], [2 * k, 2 * k])
        i = end


def same(a, b):
    n = a.num_tokens
    return (
        n == b.num_tokens
        and a.remembered() == b.remembered()
        and torch.equal(a.positions(), b.positions())
        and torch.equal(a.keys[:, :, :, :n], b.keys[:, :, :, :n])
        and torch.equal(a.values[:, :, :, :n], b.values[:, :, :, :n])
    )


def rotations(codes):
    """Camera-to-world rotations and positions as float64 arrays"""
    c = codes.double().numpy()
    return np.stack([c[:, 3:6], c[:, 6:9], np.cross(c[:, 3:6], c[:, 6:9])], -1), c[:, :3]


def shown_by_hand(codes, index, there, rays):
    """[len(index), len(rays)]: quality with which pictures show where rays from the pose `there` go, one by one"""
    rotation, position = rotations(codes)
    turn, origin = (x[0] for x in rotations(there[None]))
    out = np.zeros((len(index), len(rays)))
    for row, i in enumerate(index):
        for p, ray in enumerate(rays):
            x, y, z = rotation[i].T @ (turn @ ray + 0.02 * (origin - position[i]))
            inside = z > 0.05 and abs(x / z * 2 * USUAL_FOCAL) <= 1 and abs(y / z * 2 * USUAL_FOCAL) <= 1
            out[row, p] = inside * FADES ** min(i, FADED) / (1 + np.linalg.norm(origin - position[i]) / FAR_AWAY)
    return out


# -- names -----------------------------------------------------------------------------------------------------------------
def test_names_make_the_memories():
    base = MemoryConfig(window=3, horizon=12, schedule=(4,), budget=64)
    kinds = {"relic": CompressedMemory, "age": AgeMemory, "retrieval": RetrievalMemory, "visible": VisibleMemory}
    for name in MEMORY_NAMES:
        config = base.named(name)
        assert (config.window, config.horizon, config.budget) == (3, 12, 64)
        assert type(make(config)) is kinds.get(name, CompressedMemory)
    assert base.named("window") == base.window_only() and base.named("full").schedule == (1,)
    assert base.named("relic").schedule == RELIC_SCHEDULE == base.named("visible").schedule


def test_what_cannot_be_is_refused():
    with pytest.raises(ValueError, match="There is no memory 'lru'"):
        MemoryConfig().named("lru")
    with pytest.raises(ValueError, match="policy is one of"):
        MemoryConfig(policy="lru")
    with pytest.raises(ValueError, match="Only policy 'relic'"):
        MemoryConfig(policy="age", schedule=())
    with pytest.raises(ValueError, match="budget is"):
        MemoryConfig(budget=-1)
    with pytest.raises(ValueError, match="Training masks are RELIC's"):
        training_layout(MemoryConfig(policy="age"), 5, GRID, 1)
    with pytest.raises(ValueError, match="ask the memory"):
        MemoryConfig(policy="visible").remembers(torch.arange(3), 3)
    with pytest.raises(ValueError, match="start picture has 16 tokens"):
        make(MemoryConfig(policy="visible", budget=15))
    for policy in ("retrieval", "visible"):
        memory = make(MemoryConfig(policy=policy))
        with pytest.raises(ValueError, match="call look with 1"):
            memory.write([key_of(0)] * 2, [key_of(0)] * 2)
        assert memory.count == 0 and memory.num_tokens == 0
        with pytest.raises(ValueError, match="batch is 1"):
            new_memory(MemoryConfig(policy=policy), 1, 1, 6, GRID, batch=2)


def test_budget_is_what_relic_holds():
    """The most tokens besides the window of a RELIC memory that is filled for longer than its schedule's period."""
    for horizon, window, chunk in ((12, 3, 1), (30, 2, 2)):
        config = MemoryConfig(window=window, horizon=horizon)
        relic, most = make(config, chunk), 0
        for i in range(80):
            if i == 0 or (i - 1) % chunk == 0:
                k = torch.zeros(1, N * (1 if i == 0 else chunk), 2, 6)
                relic.write([k, k], [k, k])
                most = max(most, relic.num_tokens - window * N)
        assert config.past_budget(GRID, chunk) == most


# -- by age ----------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("grid", [(4, 4), (5, 7)])
def test_age_pools_again_and_again(grid):
    window, horizon, latents = 2, 12, 25
    memory, n = make(MemoryConfig(window, horizon=horizon, policy="age"), grid=grid), grid[0] * grid[1]
    most = 0
    for i in range(latents):
        k = key_of(i, n)
        memory.write([k, k + 1], [2 * k, 2 * k])
        most = max(most, memory.num_tokens)
    held = [0, *range(latents - horizon + 2, latents)]  # with the chunk that comes next, `horizon` latent frames
    assert memory.remembered() == held
    assert MemoryConfig(window, horizon=horizon).remembers(torch.arange(latents), latents).nonzero().flatten().tolist() == held
    at, times = 0, token_positions(torch.arange(horizon), (1, 1))[:, 0].tolist()
    for rank, i in enumerate(held):
        age, want = latents - i, key_of(i, n).unflatten(1, grid).unsqueeze(1)
        factor = 1 if i == 0 or age <= 2 else 2 if age <= 6 else 4
        size = grid
        for _ in range(int(math.log2(factor))):
            want, size = pool_cells(want.unflatten(2, size) if want.ndim == 5 else want, 2), tuple(-(-s // 2) for s in size)
            want = want.unflatten(2, size)
        want = want.flatten(1, 3)
        here = slice(at, at + want.shape[1])
        assert torch.allclose(memory.keys[1, :, :, here].transpose(1, 2), want + 1, atol=1e-6)
        assert torch.allclose(memory.values[0, :, :, here].transpose(1, 2), 2 * want, atol=1e-6)
        assert torch.equal(memory.positions()[here], token_positions(torch.tensor([times[rank]]), grid, factor))
        at += want.shape[1]
    assert at == memory.num_tokens == most  # flat since the horizon
    assert most + n <= memory.capacity


# -- by pose ---------------------------------------------------------------------------------------------------------------
WALK = "left*40 w*16 right*60 a*8 up*12 left*24"


@pytest.mark.parametrize("chunk", [1, 2])
def test_retrieval_is_greedy_coverage(chunk):
    """Against plain loops over pictures, rays and picks, before every chunk; keys and values as they were written."""
    codes, window, budget = latent_codes(WALK), 2, 3 * N + 5
    config = MemoryConfig(window, horizon=12, policy="retrieval", budget=budget)
    memory = make(config, chunk)
    focal = USUAL_FOCAL
    grid = (np.arange(8) + 0.5 - 4) / (8 * focal)
    rays = np.stack([np.tile(grid, 8), np.repeat(grid, 8), np.ones(64)], -1)
    fetched = []

    def check(memory):
        count = memory.count
        if count % 5 or not count:
            return
        wanted = codes[count : count + chunk]
        shown = np.concatenate([shown_by_hand(codes, range(count), there, rays) for there in wanted], 1)
        first = max(0, count - window)
        best, want = shown[first:].max(0), []
        while len(want) < min(3, first):
            gains = [-1 if i in want else np.maximum(shown[i] - best, 0).sum() for i in range(first)]
            overlap = [-1 if i in want else shown[i].sum() for i in range(first)]
            pick = int(np.argmax(gains if max(gains) > 1e-5 else overlap))
            if overlap[pick] <= 0:
                break
            want.append(pick)
            best = np.maximum(best, shown[pick])
        assert memory.remembered() == [*sorted(want), *range(first, count)]
        fetched.append(len(want))

    def cost(memory):
        check(memory)
        assert memory.num_tokens <= budget + window * N and memory.num_tokens + chunk * N <= memory.capacity
        for row, i in enumerate(memory.remembered()):
            here = slice(row * N, (row + 1) * N)
            assert torch.equal(memory.keys[1, :, :, here].transpose(1, 2), key_of(i) + 1)
            assert torch.equal(memory.values[0, :, :, here].transpose(1, 2), 2 * key_of(i))
        times = memory.positions()[::N, 0].tolist()
        assert times == sorted(set(times)) and (not times or times[-1] < memory.chunk_times(1)[0] < 12)

    write(memory, codes, chunk=chunk, each=cost)
    assert max(fetched) == 3


def test_retrieval_fetches_the_view_one_comes_back_to():
    """Turn away by 180 degrees and back, slowly: what is fetched at the end was seen where one looks now."""
    codes = latent_codes("left*144 right*136")
    memory = make(MemoryConfig(2, horizon=9, policy="retrieval", budget=4 * N))
    write(memory, codes[:-1])
    memory.look(codes[None, -1:])
    fetched = memory.remembered()[:-2]
    heading = torch.atan2(codes[:, 5], codes[:, 3])  # of the camera's x axis
    away = (heading - heading[-1]).abs().rad2deg()
    assert len(fetched) == 4 and max(away[i] for i in fetched) < 30 and min(fetched) < 6  # the first time, not the way back
    memory.look(codes[None, 36:37])  # and if it looked at the far end instead
    assert all(abs(i - 36) < 12 for i in memory.remembered()[:-2])


def test_visible_forgets_what_is_least_missed():
    """Against plain loops, at every latent frame: what goes is what the view all around loses least by."""
    codes, window, horizon, budget = latent_codes(WALK), 2, 9, 40
    config = MemoryConfig(window, horizon=horizon, policy="visible", budget=budget)
    memory, held, dropped = make(config), [], []
    rays = directions(512).double().numpy()
    assert np.allclose(np.linalg.norm(rays, axis=1), 1, atol=1e-6) and np.abs(rays.mean(0)).max() < 0.01
    for i in range(len(codes)):
        write(memory, codes[: i + 1], begin=i)
        held.append(i)
        past = [j for j in held if j < i + 1 - window]
        while sum(config.tokens(j, GRID) for j in past) > budget or len(held) > horizon - 1:
            shown = shown_by_hand(codes, held, codes[i], rays)
            lost = [(shown.max(0) - np.delete(shown, row, 0).max(0)).sum() for row in range(len(held))]
            able = [row for row, j in enumerate(held) if j in past and j]
            least = min(lost[row] for row in able)
            out = min((j for j in held if j not in memory.remembered()), key=lambda j: lost[held.index(j)])
            assert out in past and out and lost[held.index(out)] < least + 0.002  # equals are told apart by rounded numbers
            held.remove(out)
            past.remove(out)
            dropped.append(out)
        assert memory.remembered() == held
        assert memory.num_tokens == sum(config.tokens(j, GRID) for j in past) + min(i + 1, window) * N <= budget + window * N
        assert memory.num_tokens + N <= memory.capacity
    assert dropped != sorted(dropped)  # not simply the oldest
    at = 0
    for i in held:
        factor = 1 if i >= len(codes) - window else config.factor(i)
        want = pool_cells(key_of(i).unflatten(1, (1, *GRID)), factor).flatten(1, 2)
        assert torch.allclose(memory.keys[0, :, :, at : at + want.shape[1]].transpose(1, 2), want, atol=1e-6)
        at += want.shape[1]


def test_visible_remembers_a_place_when_one_stands_still():
    """Once around, then still for long: all around is still known; RELIC's rule knows the start and what lies ahead."""
    codes = latent_codes("left*288 static*120")
    knows = {}
    for policy in ("relic", "visible"):
        memory = make(MemoryConfig(2, horizon=18, policy=policy))
        write(memory, codes)
        assert len(memory.remembered()) <= 17 and memory.remembered()[0] == 0
        rays = directions(512).double().numpy()
        level = np.abs(rays[:, 1]) < 0.3
        knows[policy] = (shown_by_hand(codes, memory.remembered(), codes[-1], rays[level]).max(0) > 0).mean()
    assert knows["visible"] == 1 and knows["relic"] < 0.5


@pytest.mark.parametrize("policy", ["retrieval", "visible"])
def test_cost_is_flat(policy):
    codes = latent_codes("left*20 w*8 " * 15)
    memory = make(MemoryConfig(2, horizon=10, policy=policy))
    budget, sizes = memory.config.past_budget(GRID), []
    write(memory, codes, each=lambda m: sizes.append((m.num_tokens, m.keys.numel())))
    assert max(n for n, _ in sizes) <= budget + 2 * N and len({k for _, k in sizes}) == 1
    assert memory.positions()[:, 0].max() < memory.chunk_times(1)[0] == 9


@pytest.mark.parametrize("policy", ["age", "retrieval", "visible"])
def test_state_round_trip(policy):
    config, codes = MemoryConfig(2, horizon=9, policy=policy), latent_codes(WALK)
    memory, other, again = (make(config) for _ in range(3))
    write(memory, codes[:25])
    state = memory.state_dict()
    write(memory, codes, begin=25)
    other.load_state_dict(state)
    write(other, codes, begin=25)
    write(again, codes)
    assert same(memory, other) and same(memory, again)
    assert memory.num_bytes >= sum(x.numel() * x.element_size() for x in (memory.keys, memory.values))
    with pytest.raises(ValueError, match="another model"):
        new_memory(config, layers=3, heads=2, head_dim=6, grid=GRID).load_state_dict(state)


# -- worlds ----------------------------------------------------------------------------------------------------------------
def frames(chunks):
    return np.concatenate([c.frames for c in chunks])


@pytest.mark.parametrize("chunk", [1, 2])
@pytest.mark.parametrize("policy", ["age", "retrieval", "visible"])
def test_worlds_go_back_apart_and_into_files(policy, chunk, tmp_path, monkeypatch):
    monkeypatch.setattr(history_module, "SNAPSHOT_EVERY", 3)
    config = MemoryConfig(2, horizon=7, policy=policy)
    model = small_model(chunk=chunk, memory=config, steps=1)
    world = model.start(picture(), "a village", seed=2)
    first = list(world.stream("left*40 w*8 right*24"))
    kept = world._memory.remembered()
    at = len(first) - 10 // chunk
    branch = model.start(picture(), "a village", seed=2)
    for c in first[:at]:
        branch.step(c.actions)
    fork = branch.fork()
    branch.save(tmp_path / "a.world")
    loaded = model.load_world(tmp_path / "a.world")
    world.generate("left*4")  # not finished: what it looked at leaves no trace
    world.rewind(1 + len(first) - at)
    for w in (world, branch, fork, loaded):
        assert np.array_equal(frames([w.step(c.actions) for c in first[at:]]), frames(first[at:]))
        assert w._memory.remembered() == kept
    with pytest.raises(WorldError, match=f"policy '{policy}'"):
        model.with_memory(config.named("relic")).load_world(tmp_path / "a.world")
    relic = model.with_memory(config.named("relic")).start(picture(), "a village", seed=2)
    assert not np.array_equal(frames(relic.stream("left*40 w*8 right*24")), frames(first))


@pytest.mark.parametrize("policy", ["retrieval", "visible"])
def test_a_world_without_a_picture(policy):
    world = small_model(memory=MemoryConfig(2, horizon=7, policy=policy), steps=1).start(None, "a village")
    world.step("w*4")
    assert world.memory_tokens == 2 * N


def with_views():
    """The small model, shown three pictures of those remembered"""
    model = small_model(memory=MemoryConfig(2, horizon=7), steps=1)
    config = {k: v for k, v in model.transformer.config.items() if not k.startswith("_")}
    transformer = CausalWorldTransformer(**config | {"view_focal": 0.6, "view_pictures": 3})
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for p in transformer.parameters():
            p.add_(torch.randn(p.shape, generator=generator) * 0.1)
    return WorldModel(transformer, model.autoencoder.requires_grad_(False), model.text, model.config)


@pytest.mark.parametrize("policy", ["relic", "age", "retrieval", "visible"])
def test_pictures_shown_are_among_those_remembered(policy, monkeypatch):
    model, seen = with_views(), []
    model = model.with_memory(model.config.memory.named(policy))
    original = world_module.next_view
    monkeypatch.setattr(world_module, "next_view", lambda *args: seen.append(args[5].tolist()) or original(*args))
    world = model.start(picture(), "a village")
    assert getattr(world._memory, "focal", 0.6) == 0.6
    for script in ("left*4", "w*4", "right*4", "left*4", "up*4", "left*4", "down*4", "a*4", "left*4"):
        world.generate(script)
        assert seen[-1] == world._memory.remembered() and seen[-1][-1] == world.index - 1
        world.finalize()


@pytest.mark.parametrize("policy", ["age", "retrieval", "visible"])
def test_replay_sees_what_the_rollout_saw(policy):
    """Ten latent frames with views: the gradients of replay and of one graph over the whole roll-out agree."""
    model, g = with_views(), torch.Generator().manual_seed(1)
    codes = torch.from_numpy(pose_code(np.concatenate([np.eye(4)[None], integrate(to_array(as_actions("left*16 w*8 right*12")))])))
    condition = Condition(torch.randn(1, 5, 16, generator=g), torch.rand(1, 37, 13, generator=g), codes[None])
    config = RollOutConfig(MemoryConfig(2, horizon=6, policy=policy), SamplerConfig(2), 1, model.autoencoder)
    start, difference = torch.randn(1, 8, 1, 4, 4, generator=g), torch.randn(1, 8, 10, 4, 4, generator=g)
    played, graph = (roll_out(model.transformer, start, condition, config, 3, 0, graph=graph) for graph in (False, True))
    assert torch.equal(played.latents, graph.latents)
    gradients = []
    for backward in (lambda: replay_backward(model.transformer, played, difference), lambda: full_graph_backward(graph, difference)):
        model.transformer.zero_grad()
        backward()
        gradients.append(torch.cat([p.grad.flatten() for p in model.transformer.parameters() if p.grad is not None]))
    assert gradients[1].norm() > 1e-3 and (gradients[0] - gradients[1]).norm() <= 1e-5 * gradients[1].norm()
