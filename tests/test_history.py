"""How far one can go back is bounded, and what that costs too; nothing that follows changes."""

import numpy as np
import pytest
import torch
from small import picture, small_model
from viewing import with_views

import worldmodel.batch as batch_module
import worldmodel.history as history_module
import worldmodel.model as model_module
import worldmodel.world as world_module
from worldmodel.autoencoder import TinyAutoencoder
from worldmodel.chunk import Past, as_kept
from worldmodel.history import History, Snapshot
from worldmodel.memory import MemoryConfig
from worldmodel.world_file import WorldError, WorldState, pack, unpack

SCRIPT = "w*8 left*24 w+d*8 .*4 r+up*12 right*24"


@pytest.fixture(autouse=True)
def often(monkeypatch):
    monkeypatch.setattr(history_module, "SNAPSHOT_EVERY", 3)


def frames(chunks):
    return np.concatenate([c.frames for c in chunks])


def known(world):
    return sum(p.latents is not None for p in world._history)


def past(number, latents=1):
    frames = 4 * latents
    return Past(torch.full((1, 1, latents, 1, 1), float(number)), np.zeros((frames, 13)), np.full((frames, 4, 4), number), "a village")


def grown(chunks, limit, chunk=1, window=2):
    """A history whose memory may look at the last `window` latent frames and at the sixth."""
    history = History(past(-1), chunk, limit)
    for i in range(chunks):
        history.append(past(i, chunk))
        recallable = frozenset({6, *range(1 + (i + 1) * chunk - window, 1 + (i + 1) * chunk)})
        if history.wants_snapshot:
            history.add_snapshot(Snapshot({"at": torch.tensor(i + 1)}, None, recallable, np.zeros(0)))
        history.let_go(lambda now=recallable: now)
    return history


def test_latent_frames_are_found_in_their_chunks():
    history = grown(3, None, chunk=2)
    assert [history.chunk_of(k)[1] for k in range(7)] == [0, 0, 1, 0, 1, 0, 1]
    assert [float(history.latent_frame(k)[0]) for k in range(7)] == [-1, 0, 0, 1, 1, 2, 2]
    assert history.before(0) is history.start and history.before(2) is history[1] and history.last is history[2]


@pytest.mark.parametrize("limit, base, whole", [(None, 0, range(20)), (4, 15, {5, 13, 14, *range(15, 20)}), (0, 20, {5, 18, 19})])
def test_what_is_kept_whole_is_what_can_still_be_needed(limit, base, whole):
    """Since the oldest snapshot everything; before it what that snapshot's memory may look at: its window, and the sixth latent frame."""
    history = grown(20, limit)
    assert history.base == base and len(history) == 20 and all(p.actions is not None for p in history)
    assert {i for i, p in enumerate(history) if p.latents is not None and p.poses is not None} == {*whole}
    assert history.held == [i for i in sorted(whole) if i < base]
    assert min(history.snapshots, default=None) == {None: 3, 4: 15, 0: None}[limit]


def test_snapshots_get_sparser_with_age_and_stay_few():
    at = sorted(grown(300, None).snapshots)
    assert len(at) == history_module.MAX_SNAPSHOTS and at[-1] == 300
    gaps = np.diff(at)
    assert gaps[-1] == 3 and gaps[0] > 30 and all(a >= b for a, b in zip(gaps, gaps[1:], strict=False))


def test_forks_of_a_history_grow_apart_and_going_back_forgets():
    history = grown(10, 8)
    fork = history.fork()
    fork.forget_after(4)
    fork.append(past(99))
    assert len(history) == 10 and sorted(history.snapshots) == [3, 6, 9] and sorted(fork.snapshots) == [3]
    assert [float(p.latents[0, 0, 0]) for p in fork] == [0, 1, 2, 3, 99]
    assert [history.newest_snapshot(until) for until in (2, 3, 8, 9)] == [0, 3, 6, 9]


@pytest.mark.parametrize("chunk", [1, 2])
@pytest.mark.parametrize("policy", ["relic", "age", "retrieval", "visible"])
def test_a_bounded_world_shows_the_same_and_goes_back_exactly(policy, chunk):
    model = with_views(memory=MemoryConfig(2, horizon=7, policy=policy), chunk=chunk)
    whole, bounded = (model.start(picture(), "a village", seed=2, history=h) for h in (None, 2))
    first = list(whole.stream(SCRIPT))
    assert np.array_equal(frames(bounded.stream(SCRIPT)), frames(first))
    assert whole.reach == len(first) and 2 <= bounded.reach <= 2 + 3
    assert np.array_equal(bounded.actions, whole.actions)
    bounded.rewind(2)
    assert np.array_equal(frames([bounded.step(c.actions) for c in first[-2:]]), frames(first[-2:]))
    with pytest.raises(WorldError, match="keeps the last"):
        bounded.rewind(7)
    if policy != "retrieval":  # which may fetch anything
        assert known(bounded) < known(whole)


def test_an_hour_costs_no_more_than_the_limit():
    """Beyond the limit and the horizon nothing grows but the log of actions."""
    model = with_views(memory=MemoryConfig(2, horizon=7))
    for history, most in ((0, 7), (4, 4 + 3 + 7)):
        world, sizes = model.start(picture(), "a village", history=history), []
        for k in range(66):
            world.step(("w*4", "left*4")[k % 2])
            sizes.append(world.num_bytes)
            assert known(world) <= most
        assert len(set(sizes[:-18])) > 1 and max(sizes[-36:]) <= max(sizes[:30])


def test_without_history_one_cannot_go_back():
    world = small_model().start(picture(), history=0)
    chunk = world.generate("w*4")
    with pytest.raises(WorldError, match="cannot go back 1"):
        world.rewind(1)
    assert world.reach == 0 and world.index == chunk.index + 1 and not world._history.snapshots
    with pytest.raises(WorldError, match="history is a number"):
        small_model().start(picture(), history=-1)


@pytest.mark.parametrize("policy", ["relic", "retrieval", "visible"])
@pytest.mark.parametrize("history", [None, 0, 4])
def test_files_of_bounded_worlds(history, policy, tmp_path):
    model = with_views(memory=MemoryConfig(2, horizon=7, policy=policy))
    world = model.start(picture(), "a village", seed=2, history=5)
    play = list(world.stream(SCRIPT))
    world.prompt = "a desert"
    world.save(tmp_path / "a.world", history=history)
    loaded = model.load_world(tmp_path / "a.world")
    assert loaded.index == world.index and loaded.prompt == "a desert" and np.array_equal(loaded.actions, world.actions)
    assert (loaded.reach >= 4 if history != 0 else loaded.reach == 0) and loaded.reach <= world.reach
    again, more = (frames(w.stream("w*12 left*4")) for w in (world, loaded))
    assert np.array_equal(again, more)
    for w in (world, loaded):
        w.rewind(4 if history == 0 else 5)
    assert np.array_equal(*(frames(w.stream("d*8")) for w in (world, loaded)))
    loaded.save(tmp_path / "b.world")
    third = model.load_world(tmp_path / "b.world", history=0)
    assert np.array_equal(third.step("w*4").frames, loaded.step("w*4").frames) and len(play) == 20


def test_a_file_without_history_is_the_smallest():
    world = with_views().start(picture(), "a village", history=None)
    list(world.stream(SCRIPT))
    none, six, whole = world.state(history=0), world.state(history=6), world.state()
    assert none.num_bytes < six.num_bytes
    assert len(none.tensors["held"]) < len(six.tensors["held"]) < len(whole.tensors["held"]) == world.index


def test_files_of_format_1_still_load(tmp_path):
    model = with_views()
    world = model.start(picture(), "a village", seed=2)
    list(world.stream(SCRIPT))
    state = world.state(note={"speed": 2})
    old = {k: v for k, v in state.tensors.items() if k != "held"}
    WorldState(old, {k: v for k, v in state.meta.items() if k != "base"} | {"format": 1}).save(tmp_path / "old.world")
    loaded = model.load_world(tmp_path / "old.world")
    assert np.array_equal(loaded.step("w*4").frames, world.step("w*4").frames)
    WorldState(old, state.meta | {"format": 9}).save(tmp_path / "new.world")
    with pytest.raises(WorldError, match="world format 9"):
        model.load_world(tmp_path / "new.world")
    state.save(tmp_path / "noted.world")
    assert WorldState.load(tmp_path / "noted.world", model).note == {"speed": 2}


def test_what_is_kept_in_float16_is_what_was_shown():
    """Frames, depth and memory are made of the numbers that are kept, not of those before they were rounded."""
    model = with_views()
    world = model.start(picture(), "a village", seed=2)
    play = list(world.stream("w*8 left*8"))
    given = torch.randn(world.last_latents.shape)
    play.append(world.generate_from(given, "d*4"))
    again, state = world.fork(), model.autoencoder.advance(world._history.start.latents.float())
    again.rewind(5)  # to the start: all that follows is made of what is kept
    for chunk, past in zip(play, world._history, strict=True):
        video, state = model.autoencoder.decode_chunk(past.latents.float(), state)
        assert past.latents.dtype == past.inverse_depth.dtype == torch.float16 and world.last_latents.dtype == torch.float32
        assert np.array_equal(model.to_frames(video), chunk.frames)
        again.generate_from(past.latents.float(), chunk.actions)
    again.finalize()
    one, other = (w.memory.state_dict() for w in (world, again))
    assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
    assert torch.equal(world.last_latents, given.half().float()) and not torch.equal(world.last_latents, given)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_what_other_models_compute_is_kept_as_it_is(dtype):
    world = with_views(dtype).start(picture(), "a village", seed=2)
    world.step("w*4")
    assert world._history.start.latents.dtype == world._history[0].latents.dtype == world.last_latents.dtype == dtype


def test_what_is_kept_stays_finite():
    x = torch.tensor([1e6, -1e6, 65504.0, 1 / 3, 0.0])
    assert as_kept(x).tolist() == [65504.0, -65504.0, 65504.0, float(np.float16(1 / 3)), 0.0]


def test_files_of_format_4_go_on_from_their_own_numbers(monkeypatch, tmp_path):
    """What they have in float32 is not rounded when it is opened, since their memory was made of it."""
    model = with_views()
    with monkeypatch.context() as before:
        for module in (batch_module, model_module, world_module):
            before.setattr(module, "as_kept", lambda x: x)
        world = model.start(picture(), "a village", seed=2)
        list(world.stream("w*8 left*8"))
        past = world.memory.state_dict()
        list(world.stream("d*8"))
        state = world.state()
        assert state.tensors["latents"].dtype == state.tensors["inverse_depth"].dtype == torch.float32
        WorldState(state.tensors, state.meta | {"format": 4}).save(tmp_path / "old.world")
    loaded = model.load_world(tmp_path / "old.world")
    loaded.step("w*4")
    assert loaded._history[-1].latents.dtype == torch.float16
    loaded.save(tmp_path / "new.world")
    again = model.load_world(tmp_path / "new.world")
    assert np.array_equal(*(frames(w.stream("a*8")) for w in (loaded, again)))
    for w in (loaded, again):
        w.rewind(5)
        assert all(torch.equal(x, w.memory.state_dict()[name]) for name, x in past.items())


def test_files_that_say_what_cannot_be_are_refused(tmp_path):
    """A file may be anybody's: it must fail when it is opened, not later."""
    model = with_views()
    world = model.start(picture(), "a village", seed=2)
    list(world.stream("w*8"))
    state = world.state()

    def broken(tensors=(), **meta):
        WorldState(state.tensors | dict(tensors), state.meta | meta).save(tmp_path / "a.world")
        with pytest.raises(WorldError, match="not a readable world file"):
            WorldState.load(tmp_path / "a.world", model)

    latents = state.tensors["latents"]
    broken({"latents": latents[:, :, :-1].clone()})
    broken({"latents": torch.full_like(latents, float("nan"))})
    broken({"poses": state.tensors["poses"][:-1].clone()})
    broken({"actions": state.tensors["actions"][:-1].clone()})
    for held in ([0, 0], [1, 0], [0, 7], [-1, 0]):
        broken({"held": torch.tensor(held)})
    broken(prompt="x" * 5000)
    broken(prompts=[[0, "x" * 5000]])
    broken(seed="1")
    broken(base=99)
    broken(prompts=7)
    del state.tensors["held"]
    broken()
    state = world.state()
    WorldState(state.tensors, state.meta).save(tmp_path / "a.world")
    assert model.load_world(tmp_path / "a.world").index == 2


def test_the_decoders_state_is_remade_on_the_way_back(monkeypatch):
    """Of a decoder whose state depends on everything before, as a causal convolution's may."""

    def decode_chunk(self, latents, state=None):
        video, _ = original(self, latents, None if state is None else state[0])
        total = latents.sum() if state is None else latents.sum() + state[1]
        return video + 0.1 * torch.tanh(total), [(latents * self.latents_std + self.latents_mean)[:, :, -1], total, "Rep", None]

    original = TinyAutoencoder.decode_chunk
    monkeypatch.setattr(TinyAutoencoder, "decode_chunk", decode_chunk)
    monkeypatch.setattr(TinyAutoencoder, "advance", lambda self, latents, state=None: self.decode_chunk(latents, state)[1])
    model = small_model()
    world = model.start(picture(), history=4)
    first = list(world.stream(SCRIPT))
    loaded = world.from_state(model, world.state(history=2))
    for w in (world, loaded):
        w.rewind(2)
        assert np.array_equal(frames([w.step(c.actions) for c in first[-2:]]), frames(first[-2:]))


def test_decoder_states_survive_a_file():
    state = [torch.arange(3.0), None, "Rep", torch.zeros(2, 1)]
    back = unpack(pack(state), torch.device("cpu"))
    assert back[1] is None and back[2] == "Rep" and torch.equal(back[0], state[0]) and torch.equal(back[3], state[3])
    assert unpack(pack(None), torch.device("cpu")) is None and torch.equal(unpack(pack(state[0]), torch.device("cpu")), state[0])
