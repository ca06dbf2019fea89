"""What is sent over a slow link, second by second."""

import numpy as np

from worldmodel.server.adapt import LADDER, LONGEST_PATIENCE_S, PATIENCE_S, Adaptation, resized


def after(adaptation, seconds, sent, skipped):
    for _ in range(seconds):
        adaptation.second(sent, skipped)
    return adaptation.picture(85, 128, 96)


def test_quality_goes_down_before_size_and_both_come_back():
    adaptation = Adaptation()
    assert after(adaptation, 9, 16, 0) == adaptation.picture(85, 128, 96) and not adaptation.picture(85, 128, 96).reduced
    steps = [after(adaptation, 1, 8, 8) for _ in range(len(LADDER))]
    assert [s.quality for s in steps] == sorted((s.quality for s in steps), reverse=True)
    assert steps[0].quality < 85 and steps[0].width == 128 and steps[2].width == 128
    assert (steps[-1].width, steps[-1].height) == (64, 48) and steps[-1].reduced, "never less than the last rung"
    assert after(adaptation, PATIENCE_S * len(LADDER), 16, 0) == Adaptation().picture(85, 128, 96)


def test_what_was_too_much_is_tried_again_ever_more_rarely():
    adaptation, tries = Adaptation(), []
    for second in range(600):
        before = adaptation.level
        adaptation.second(16 if adaptation.level else 8, 0 if adaptation.level else 8)
        if adaptation.level < before:
            tries.append(second)
    gaps = np.diff(tries)
    assert gaps[0] <= 2 * PATIENCE_S + 2 and gaps[-1] >= LONGEST_PATIENCE_S and list(gaps) == sorted(gaps)


def test_a_second_in_which_nothing_was_due_says_nothing():
    adaptation = Adaptation()
    after(adaptation, 1, 8, 8)
    level = adaptation.level
    after(adaptation, 100, 0, 0)
    assert adaptation.level == level


def test_small_pictures_and_low_qualities_have_a_floor():
    adaptation = Adaptation()
    after(adaptation, 20, 0, 16)
    picture = adaptation.picture(25, 48, 40)
    assert picture.quality == 20 and picture.height == 32
    pixels = np.arange(40 * 48 * 3, dtype=np.uint8).reshape(40, 48, 3)
    assert resized(pixels, picture).shape == (picture.height, picture.width, 3)
    assert resized(pixels, Adaptation().picture(85, 48, 40)) is pixels
