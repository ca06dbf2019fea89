"""The comparison of memories: what is shown is remembered, every memory sees the same, and the tables say what was measured."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from small import small_model

from distill import suite_memories, suite_stream
from distill.autoencoder import to_video
from distill.scenes import render
from distill.suite import SuiteError
from distill.suite_memories import Walk, evaluate, parse_memory, play, show, with_memory
from distill.suite_memories_report import pareto_front
from worldmodel.actions import Action, parse_script, to_array
from worldmodel.camera import integrate

SIZE = (64, 64)


def test_what_is_shown_is_in_the_world_as_if_it_had_made_it():
    model = small_model()
    clip = render(3, "left*8", size=SIZE)
    world = model.start(clip.frames[0], clip.caption, seed=0)
    show(world, clip, 8)
    latents = model.autoencoder.encode(to_video(clip.frames[None]))
    assert torch.equal(world.last_latents, latents[:, :, 2:3].half().float()) and world.index == 2
    assert np.allclose(world.pose[:3, :3], clip.camera_to_world[0, :3, :3].T @ clip.camera_to_world[-1, :3, :3], atol=1e-5)
    other = model.start(clip.frames[0], clip.caption, seed=0)
    for k in (1, 2):
        other.generate_from(latents[:, :, k : k + 1], clip.actions[4 * k - 3 : 4 * k + 1])
    assert np.array_equal(world.step("w*4").frames, other.step("w*4").frames)
    with pytest.raises(SuiteError, match="whole chunks of 4"):
        show(model.start(clip.frames[0], clip.caption, seed=0), clip, 6)


def test_a_walk_is_shown_and_then_played():
    model, walk = small_model(), Walk("left*8", "right*8", (2,))
    clip = walk.clip(3, SIZE)
    video, world = play(model, "relic", walk, clip)
    assert video.shape == clip.frames.shape and world.index == 4
    other = model.start(clip.frames[0], clip.caption, seed=0)
    show(other, clip, 8)
    again = np.concatenate([c.frames for c in other.stream([Action.from_vector(a) for a in clip.actions[9:]])])
    assert np.array_equal(video[:9], clip.frames[:9]) and np.array_equal(video[9:], again)
    longer, _ = play(model, "relic", Walk("left*8 right*4", "right*4", (2,)), clip)
    assert np.array_equal(video[:9], longer[:9]) and not np.array_equal(video[9:13], longer[9:13])


def test_memories_are_named_with_their_budget():
    assert parse_memory("relic") == ("relic", None) and parse_memory("visible:640") == ("visible", 640)
    assert with_memory(small_model(), "retrieval:32").config.memory.budget == 32
    for wrong, message in (("elephant", "There is no memory"), ("relic:5", "budget is a number"), ("visible:few", "budget is a number")):
        with pytest.raises(SuiteError, match=message):
            parse_memory(wrong)


def test_near_pictures_are_those_of_the_window():
    model = small_model()
    clip = render(3, "left*40", size=SIZE)
    worlds = {name: suite_memories.start(model, name, clip) for name in ("relic", "relic/near")}
    for world in worlds.values():
        show(world, clip, 40)
    assert worlds["relic"].memory.remembered() == [0, *range(3, 11)]
    assert worlds["relic/near"].memory.remembered() == [8, 9, 10]
    assert worlds["relic/near"].memory_tokens == worlds["relic"].memory_tokens


def test_one_command_compares_and_goes_on_where_it_stopped(tmp_path, monkeypatch):
    walks = {
        "turn back": Walk("left*16", "right*16", (2,)),
        "40 s later": Walk("left*16", "right*16", (2,)),
        "on its own": Walk("", "left*20 right*16", (2,), every=2),
    }
    monkeypatch.setattr(suite_memories, "WALKS", walks)
    monkeypatch.setattr(suite_memories, "ROUND_CHUNKS", 1)
    model = small_model()
    first = evaluate(model, "small", ["relic", "visible:64"], 1, 1, tmp_path)
    assert list(first["memories"]) == ["window", "relic", "visible:64"]  # the window is what all are compared with
    records = [json.loads(line) for line in (tmp_path / "walks.jsonl").read_text().splitlines()]
    assert len(records) == 9
    visit = {r["memory"]: r["revisit"]["2"] for r in records if r["walk"] == "turn back"}
    gain = first["memories"]["relic"]["walks"]["turn back"]["2"]["gain"]
    assert gain == [pytest.approx(visit["relic"][2] - visit["window"][2], abs=1e-3), None, None]
    assert first["costs"]["relic"]["tokens"] > first["costs"]["window"]["tokens"] > 0
    table = (tmp_path / "table.md").read_text()
    assert "| visible:64 |" in table and "less the window's" in table and "own first visit, 2 s" in table
    assert (tmp_path / "pareto.png").stat().st_size > 1000
    height = np.asarray(Image.open(tmp_path / "sheet-turn-back.png")).shape[0]
    assert height == 4 * SIZE[0]  # the truth and three memories

    played = []
    monkeypatch.setattr(suite_memories, "play", lambda *a, real=play: played.append(1) or real(*a))
    second = evaluate(model, "small", ["relic", "visible:64"], 2, 1, tmp_path)
    assert len(played) == 6 and second["memories"]["relic"]["scenes"] == 2
    low, high = second["memories"]["relic"]["revisit"]["up to 20 s"][1:]
    assert low <= second["memories"]["relic"]["revisit"]["up to 20 s"][0] <= high


def test_the_front_is_what_nothing_cheaper_beats():
    points = [(5, 20.0), (1, 10.0), (5, 25.0), (9, 24.0), (12, 26.0), (3, 10.0)]
    assert pareto_front(points) == [(1, 10.0), (5, 25.0), (12, 26.0)]


def test_a_stream_comes_back_to_what_it_was_shown(tmp_path, monkeypatch):
    """The poses of the way back are those of the truth that it is compared with, and every minute ends where it began."""
    actions = parse_script(f"{suite_stream.SHOWN} {suite_stream.MEANWHILE} {suite_stream.PLAYED}")
    poses = np.concatenate([np.eye(4)[None], integrate(to_array(actions))])
    played = poses[-len(parse_script(suite_stream.PLAYED)) :]
    assert np.allclose(played, poses[suite_stream.FIRST :][: len(played)], atol=1e-6)
    assert (suite_stream.MINUTE * 16) % len(parse_script(suite_stream.MEANWHILE)) == 0

    monkeypatch.setattr(suite_stream, "SHOWN", "left*8 right*4")
    monkeypatch.setattr(suite_stream, "MEANWHILE", "up*2 down*2")
    monkeypatch.setattr(suite_stream, "PLAYED", "left*4")
    monkeypatch.setattr(suite_stream, "FIRST", 5)
    monkeypatch.setattr(suite_stream, "MINUTE", 2)
    found = suite_stream.evaluate(small_model(), "small", ["window", "visible"], 1, tmp_path)["memories"]
    minute, clock, busy, held, tokens, resident = found["visible"]["minutes"][0]
    assert minute == 1 and clock > 0 < busy and held > 0 and resident > 2**26 and tokens > found["window"]["minutes"][0][4] > 0
    assert len(found["visible"]["revisit"]) == 3
    assert "| visible, change |" in (tmp_path / "stream.md").read_text()
