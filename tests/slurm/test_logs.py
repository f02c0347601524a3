"""Logs of a job's ranks: read together, followed to the last line, never a line twice or half."""

from __future__ import annotations

from pathlib import Path

from slurm.logs import lines, log_files


def test_speakers_are_found_and_ordered(tmp_path: Path) -> None:
    for name in ("7_batch.out", "7_10_log.out", "7_2_log.out", "job.json", "7_srun.err", "7_0_log.txt"):
        (tmp_path / name).write_text("x\n")
    assert list(log_files(tmp_path)) == ["batch", "2", "10"]
    array = tmp_path / "array"
    array.mkdir()
    for name in ("9_1_batch.out", "9_1_0_log.out", "9_0_1_log.out", "9_0_0_log.out"):
        (array / name).write_text("x\n")
    assert list(log_files(array)) == ["0:0", "0:1", "1:batch", "1:0"]


def test_what_stands_there_is_read_or_the_last_of_it(tmp_path: Path) -> None:
    (tmp_path / "7_0_log.out").write_text("a\nb\nc\n")
    (tmp_path / "7_1_log.out").write_bytes(b"x\xff\ny")
    assert list(lines(tmp_path)) == [("0", "a"), ("0", "b"), ("0", "c"), ("1", "x\ufffd"), ("1", "y")]
    assert list(lines(tmp_path, last=1)) == [("0", "c"), ("1", "y")]
    assert list(lines(tmp_path, last=0)) == []
    assert list(lines(tmp_path / "nothing")) == []


def test_new_lines_follow_whole_and_once_and_those_of_a_new_speaker_too(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("slurm.logs.POLL_S", 0.0)
    zero, one = tmp_path / "7_0_log.out", tmp_path / "7_1_log.out"
    zero.write_text("old\nolder\nhal")
    steps = iter(
        [lambda: None, lambda: zero.open("a").write("f\nnew\n"), lambda: one.write_text("late\n"), lambda: zero.open("a").write("end")]
    )

    def ended() -> bool:
        """Something is written before each reading; the last is read too."""
        step = next(steps, None)
        if step:
            step()
        return step is None

    found = list(lines(tmp_path, last=1, ended=ended))
    assert found == [("0", "older"), ("0", "half"), ("0", "new"), ("1", "late"), ("0", "end")]
