"""Places, the line and the limits, on a clock of the test's own."""

import pytest

from worldmodel.admission import Admission, AdmissionConfig, Refused


def test_first_come_first_served_and_the_line_moves_up():
    door = Admission(AdmissionConfig(places=2, line=2))
    a, b, c, d = (door.ask(now) for now in (0, 1, 2, 3))
    assert [door.position(t) for t in (a, b, c, d)] == [0, 0, 1, 2] and (door.occupied, door.waiting) == (2, 2)
    with pytest.raises(Refused, match="try again") as refused:
        door.ask(4)
    assert refused.value.retry_after_s == 4.0
    assert door.leave(b, 5) == [c] and door.position(d) == 1 and c.since == 5
    assert door.leave(d, 6) == [] and door.waiting == 0
    assert door.leave(a, 7) == [] and door.leave(a, 8) == [] and door.occupied == 1
    assert door.ask(9).admitted


def test_nobody_overtakes_the_line():
    door = Admission(AdmissionConfig(places=1, line=5))
    a, b = door.ask(0), door.ask(1)
    door.places = 0  # memory ran out
    door.leave(a, 2)
    c = door.ask(3)
    assert not b.admitted and [door.position(t) for t in (b, c)] == [1, 2]
    door.places = 1
    assert door.advance(4) == [b]


def test_limits_hold_only_while_somebody_waits():
    door = Admission(AdmissionConfig(places=2, line=3, time_limit_s=100, idle_s=30))
    a, b = door.ask(0), door.ask(10)
    door.touch(a, 95)
    assert door.overdue(500) == []
    door.touch(a, 499)
    door.touch(b, 499)
    c = door.ask(500)
    assert door.overdue(500) == [(a, "time")], "one waits, so one goes, not both"
    assert door.wait_s(c, 500) == 0.0
    door.leave(a, 500)
    assert c.admitted and door.overdue(500) == []
    d, e = door.ask(501), door.ask(501)
    door.touch(b, 502)
    assert door.overdue(531) == [(c, "idle"), (b, "time")], "who does nothing goes before who plays"
    assert door.wait_s(d, 531) == 0.0 and door.wait_s(e, 531) == pytest.approx(69)
    assert door.overdue(531, waiting=0) == []


def test_the_wait_is_bounded_by_the_time_limit_alone():
    door = Admission(AdmissionConfig(places=2, line=9, time_limit_s=60))
    door.ask(0), door.ask(20)
    line = [door.ask(30) for _ in range(4)]
    assert [door.wait_s(t, 30) for t in line] == [30, 50, 90, 110]
    endless = Admission(AdmissionConfig(places=1, line=1))
    endless.ask(0)
    assert endless.wait_s(endless.ask(0), 1) is None


def test_one_group_cannot_take_all_places():
    door = Admission(AdmissionConfig(places=4, line=4, group_places=2))
    door.ask(0, "here"), door.ask(0, "here")
    with pytest.raises(Refused, match="2 worlds open"):
        door.ask(1, "here")
    assert door.ask(2, "there").admitted


def test_impossible_rules_are_refused():
    for wrong in ({"places": 0}, {"line": -1}, {"idle_s": -1}):
        with pytest.raises(ValueError):
            AdmissionConfig(**wrong)
