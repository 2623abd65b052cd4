"""Progress of a comparison of sets: of the whole job, with the time left."""

from __future__ import annotations

import math

import pytest

from engine.measure.calibrating.course import Course


def test_stages_announce_the_progress_of_the_job() -> None:
    course = Course(job="job", results=4, tokens=1000)
    course.at = "code 8 × 256"
    first = course.stage("calibrating", 2).step(0, "code")
    assert first is not None
    assert (first.done, first.total, first.phase) == (0, 4, "")
    assert first.subject == "code 8 × 256 calibrating"
    assert math.isnan(first.seconds_left)
    course.timings = {"load_s": 9.0, "calibrate_s": 2.0, "quantize_s": 3.0, "measure_s": 1.0}
    course.passed = 200
    course.result()
    course.known_result()
    course.timings["measure_s"] = 2.0
    second = course.stage("measuring", 8).step(0, "code 8 × 256 on prose")
    assert second is not None
    assert second.done == 2 + 1 / 4  # a second of the four that a result took
    # 800 tokens at 100 a second, and two results of four seconds but for the one that is over.
    assert second.seconds_left == pytest.approx(8 + 7)
