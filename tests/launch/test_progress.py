"""What a person sees while something long is running."""

from __future__ import annotations

import io
import itertools

import pytest

from launch.cli import progress as shown
from launch.cli.progress import duration, line, progress


def test_everything_passes_through_in_order_and_the_last_line_tells_the_whole(capsys):
    assert list(progress(range(7), title="pack", unit="cubes")) == list(range(7))
    out, err = capsys.readouterr()
    assert out == "", "stdout belongs to results"
    assert err.count("\n") == 1 and err.startswith("pack: 7/7 cubes, ")


def test_plain_lines_are_ten_seconds_apart(capsys):
    ticks = itertools.count(0, 3)  # every look at the clock finds it three seconds later
    list(shown._lines(range(10), 10, "train", "steps", clock=lambda: float(next(ticks))))
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        "train: 4/10 steps, 0.33 steps/s, 12 s, 18 s left",
        "train: 8/10 steps, 0.33 steps/s, 24 s, 6 s left",
        "train: 10/10 steps, 0.3 steps/s, 33 s",
    ]


def test_what_was_there_already_says_nothing_of_the_rate(capsys):
    ticks = iter([0.0, *(0.01 * i for i in range(1, 81)), *(float(t) for t in range(5, 105, 5)), 100.0])
    list(shown._lines(range(100), 100, "sample", "image", clock=lambda: next(ticks)))
    lines = capsys.readouterr().err.splitlines()
    assert (
        lines[0] == "sample: 82/100 image, 0.22 image/s, 10 s, 1 min 23 s left"
        and lines[-1] == "sample: 100/100 image, 0.2 image/s, 1 min 40 s"
    )


def test_an_unknown_total_is_counted_and_not_guessed(capsys):
    assert sum(progress(itertools.islice(itertools.count(), 5), title="read")) == 10
    assert capsys.readouterr().err.startswith("read: 5 it, ")


def test_a_failure_in_the_loop_still_says_how_far_it_came(capsys):
    with pytest.raises(RuntimeError):
        for i in progress(range(9), title="encode"):
            if i == 3:
                raise RuntimeError
    assert "encode: 3/9 it" in capsys.readouterr().err


def test_a_terminal_gets_a_bar_with_rate(monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setattr("sys.stderr", screen := Terminal())
    assert list(progress(range(50), title="pack [raw]", unit="cubes")) == list(range(50))
    assert "pack [raw]" in screen.getvalue() and "50/50 cubes" in screen.getvalue() and "cubes/s" in screen.getvalue()


@pytest.mark.parametrize(("seconds", "text"), [(0.4, "0 s"), (59.4, "59 s"), (200, "3 min 20 s"), (7500, "2 h 05 min"), (90000, "1 d 1 h")])
def test_durations_read_naturally(seconds, text):
    assert duration(seconds) == text


def test_no_time_left_is_promised_before_anything_is_done():
    assert "left" not in line(0, 10, "x", "it", 3.0)
