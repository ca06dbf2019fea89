"""Keys, scripts and vectors all give the same thirteen magnitudes, and mistakes are told in words."""

import dataclasses

import numpy as np
import pytest

from worldmodel.actions import (
    ACTION_NAMES,
    KEY_BINDINGS,
    MAX_SCRIPT_FRAMES,
    NUM_ACTIONS,
    STATIC,
    Action,
    ActionError,
    as_actions,
    parse_script,
    to_array,
)

OPPOSITES = {
    "dolly_in": "dolly_out", "truck_left": "truck_right", "pedestal_up": "pedestal_down",
    "tilt_up": "tilt_down", "pan_left": "pan_right", "roll_cw": "roll_ccw",
}  # fmt: skip


def vector(**magnitudes: float) -> np.ndarray:
    out = np.zeros(13, np.float32)
    for name, value in magnitudes.items():
        out[ACTION_NAMES.index(name)] = value
    return out


def test_relics_thirteen_actions_in_opposite_pairs_with_static_last():
    assert (NUM_ACTIONS, STATIC) == (13, 12)
    assert dict(zip(ACTION_NAMES[0:12:2], ACTION_NAMES[1:12:2], strict=True)) == OPPOSITES


@pytest.mark.parametrize(("key", "name"), KEY_BINDINGS.items())
def test_every_key_presses_its_action(key, name):
    np.testing.assert_array_equal(Action.from_keys({key}).to_vector(), vector(**{name: 1}))


def test_held_keys_add_up_and_two_keys_of_one_action_count_once():
    both = Action.from_keys(["KeyW", "ArrowLeft"], speed=0.5).to_vector()
    np.testing.assert_array_equal(both, vector(dolly_in=0.5, pan_left=0.5))
    assert both.dtype == np.float32
    assert Action.from_keys({"KeyJ", "ArrowLeft"}) == Action.from_keys({"KeyJ"})


@pytest.mark.parametrize(("one", "other"), OPPOSITES.items())
def test_opposites_cancel(one, other):
    assert Action.from_names([one, other]) == Action.idle()
    half = np.float64(vector(**{one: 1.0, other: 0.25, "static": 0.7}))
    np.testing.assert_array_equal(Action.from_vector(half).to_vector(), vector(**{one: 0.75}))
    assert Action.from_names([one]).opposite() == Action.from_names([other])


def test_nothing_held_is_static_and_static_is_its_own_opposite():
    for idle in (Action.idle(), Action.from_keys([]), Action.from_names(["static"]), Action.from_keys({"KeyW"}, speed=0)):
        np.testing.assert_array_equal(idle.to_vector(), vector(static=1))
        assert idle.is_static
        assert idle.opposite() == idle
    assert not Action.from_keys({"KeyW"}).is_static


def test_opposite_twice_is_the_same():
    action = Action.from_vector(np.random.default_rng(0).random(13))
    assert action.opposite().opposite() == action != action.opposite()


def test_an_action_is_a_value():
    assert len({Action.idle(), Action.idle(), Action.from_keys({"KeyW"})}) == 2
    with pytest.raises(dataclasses.FrozenInstanceError):
        Action.idle().magnitudes = ()


def test_script():
    actions = parse_script("w*3 W+left*2 . none*2 tilt_up+roll_ccw  s")
    expected = [dict(dolly_in=1)] * 3 + [dict(dolly_in=1, pan_left=1)] * 2 + [dict(static=1)] * 3
    expected += [dict(tilt_up=1, roll_ccw=1), dict(dolly_out=1)]
    np.testing.assert_array_equal(to_array(actions), [vector(**e) for e in expected])
    assert parse_script("w+s") == [Action.idle()]
    assert parse_script("d*2", speed=0.5) == [Action.from_keys({"KeyD"}, 0.5)] * 2


def test_scripts_arrays_and_actions_mean_the_same():
    script = "w*2 w+left a+up"
    actions = parse_script(script)
    assert as_actions(script) == as_actions(iter(actions)) == as_actions(to_array(actions)) == actions
    assert to_array([]).shape == (0, 13)


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        (lambda: Action.from_keys({"KeyW", "Tab"}), "Unknown key 'Tab'.*KeyW"),
        (lambda: Action.from_names(["jump"]), "Unknown action 'jump'.*dolly_in"),
        (lambda: Action.from_names(["dolly_in"], speed=-1), "not negative"),
        (lambda: Action.from_vector(np.zeros(12)), "13 magnitudes.*got 12"),
        (lambda: Action.from_vector([np.nan] * 13), "finite"),
        (lambda: Action((0.0, float("inf")) + (0.0,) * 11), "finite"),
        (lambda: parse_script("w*2 x*3"), "Unknown key 'x' in script term 'x.3'.*w, s, a, d"),
        (lambda: parse_script("w+*2"), "Unknown key ''"),
        (lambda: parse_script("w*"), "keys.frames"),
        (lambda: parse_script("w*-1"), "keys.frames"),
        (lambda: parse_script("w*1.5"), "keys.frames"),
        (lambda: parse_script("w*²"), "keys.frames"),
        (lambda: parse_script("w*" + "9" * 5000), "keys.frames|longer than"),
        (lambda: parse_script("  "), "empty"),
        (lambda: parse_script("w*0"), "empty"),
        (lambda: parse_script(f"w*{MAX_SCRIPT_FRAMES} w"), "longer than"),
    ],
)
def test_mistakes_are_told(wrong, told):
    with pytest.raises(ActionError, match=told):
        wrong()
