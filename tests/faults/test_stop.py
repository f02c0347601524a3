"""A signal that one rank gets stops all of them at the same step, after one commit, and the run goes on as if nothing had happened."""

from __future__ import annotations

import pytest

from tests.faults.runs import Place

CASES = [
    ("SIGTERM", "1", "ddp"),
    ("SIGUSR1", "0", "zero3"),
    ("SIGUSR2", "1", "zero2"),
    ("SIGINT+SIGINT+SIGTERM", "0,1", "ddp"),  # Ctrl-C reaches everybody, and the launcher passes it on
]


def stopped(place: Place, name: str, how: str, who: str, mode: str) -> list[int]:
    run = place.run(name, "vqgan")
    words = ["train", "vqgan", place.folder / "tiny.yaml", f"run={run}", f"vqgan.engine.mode={mode}", "vqgan.loop.samples=120"]
    wrapper = ["tests.faults.disturbed", who, how, place.folder / f"{name}.time"]
    return place.ranks.run(run.with_suffix(".log"), [*words, "vqgan.loop.checkpoint_every=40"], 2, wrapper=wrapper, patience=20)


@pytest.mark.parametrize(("how", "who", "mode"), CASES)
def test_all_ranks_stop_at_one_step_after_one_commit(place: Place, how: str, who: str, mode: str) -> None:
    name = f"stopped-{how}-{mode}"
    assert stopped(place, name, how, who, mode) == [75, 75], place.said(name, "vqgan")[-3000:]
    reached = [checkpoint.samples for checkpoint in place.store(name, "vqgan").committed()]
    assert 80 <= reached[0] < 120 and reached[1] <= 80, reached
    assert f"stopped by {how.split('+')[0]} after {reached[0]} of 120 samples" in place.said(name, "vqgan")
    words = ["vqgan.loop.samples=120", "vqgan.loop.checkpoint_every=40"]
    place.train(name, "vqgan", mode, 2, *words, expect=True)
    place.train(f"unstopped-{mode}", "vqgan", mode, 2, *words, expect=True)
    assert place.curve(name, "vqgan") == place.curve(f"unstopped-{mode}", "vqgan")
    assert place.parts(name, "vqgan")[0] == place.parts(f"unstopped-{mode}", "vqgan")[0]


def test_a_second_signal_that_is_no_echo_ends_at_once(place: Place) -> None:
    codes = stopped(place, "twice", "SIGTERM+4+SIGTERM", "0", "ddp")
    assert codes[0] == 128 + 15
    assert place.store("twice", "vqgan").newest(progress_exists=True).samples == 80, "it was to leave without a commit"
