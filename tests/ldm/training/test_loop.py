"""The loop promises: a step that is not finite is skipped whole, many in a row go back once, then fail loudly; a resume is exact."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from data_shards.errors import TryAgain, UnsafeResume
from ldm.checkpoints.store import CheckpointStore, Reader
from ldm.comm import Alone
from ldm.training.clock import TIMINGS
from ldm.training.config import EngineConfig, LoopConfig
from ldm.training.engine import Engine
from ldm.training.log import MetricLog, read_log
from ldm.training.loop import Diverged, fit


class Line:
    """Fits w·x to 3x; `spoil(samples, pass)` says where the loss is NaN, `pass` counting how often that position was seen."""

    def __init__(self, engine: Engine, spoil: Callable[[int, int], bool] = lambda samples, times: False) -> None:
        self.module = nn.Linear(1, 1, bias=False)
        nn.init.constant_(self.module.weight, 0.5)
        self.model = engine.add("line", self.module, lr=0.1, betas=(0.9, 0.99), weight_decay=0.0)
        self.spoil, self.times, self.weights, self.skipped = spoil, {}, [], []

    def taking_part(self, samples: int) -> tuple[str, ...]:
        return ("line",)

    def may_be_best(self, samples: int) -> bool:
        return True

    def as_loaded(self) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()

    def start_epoch(self, epoch: int) -> dict[str, float]:
        return {"epoch_begun": float(epoch)}

    def losses(self, batch: SimpleNamespace, samples: int) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        self.times[samples] = self.times.get(samples, 0) + 1
        self.weights.append((samples, self.module.weight.item()))
        x = batch.x
        loss = (self.model(x) - 3 * x).square().mean()
        return {"line": loss * float("nan") if self.spoil(samples, self.times[samples]) else loss}, {"error": loss.detach()}

    def learning_rates(self, samples: int) -> dict[str, float]:
        return {"line": 0.1}

    def after_step(self, samples: int, batch: int, *, skipped: bool) -> dict[str, float]:
        if skipped:
            self.skipped.append(samples)
        return {}

    def validate(self, batch: SimpleNamespace, samples: int) -> dict[str, Tensor]:
        return {"loss": (self.module(batch.x) - 3 * batch.x).square().flatten()}

    def state(self) -> dict[str, Tensor]:
        return {}

    def load(self, read: Reader) -> None:
        return


class Numbers:
    """Two samples a batch, values by position; ten samples an epoch."""

    batch_size, count, epoch_samples, bad = 2, 10, 10, ()

    def batches(self, consumed: int) -> Iterator[SimpleNamespace]:
        while True:
            yield SimpleNamespace(keys=["a", "b"], x=torch.tensor([[1.0 + consumed % 3], [0.5]]))
            consumed += 2


def trained(
    folder: Path, *, samples: int = 24, every: int = 8, bad: int = 3, background: bool = True, identity: dict | None = None, **spoil
) -> Line:
    engine = Engine(EngineConfig(tracker="none"))
    trainer = Line(engine, **spoil)
    store, log = CheckpointStore(folder / "checkpoints", engine.comm), MetricLog(folder / "metrics.jsonl", writes=True)
    config = LoopConfig(samples=samples, batch=2, checkpoint_every=every, log_every=2, max_bad_steps=bad, background=background)
    fit(trainer, Numbers(), engine, store, log, config, identity=identity or {"task": "line"}, stop=lambda: False)
    return trainer


def curve(folder: Path) -> list[dict]:
    return [{k: v for k, v in row.items() if not k.startswith(TIMINGS)} for row in read_log(folder / "metrics.jsonl")]


def test_a_step_that_is_not_finite_leaves_weights_and_optimizer_as_they_were(tmp_path: Path) -> None:
    trainer = trained(tmp_path, spoil=lambda samples, times: samples in (6, 8))
    assert trainer.skipped == [6, 8]
    weights = dict(trainer.weights)
    assert weights[6] == weights[8] == weights[10] != weights[12]
    assert [row["skipped"] for row in curve(tmp_path)][:6] == [0, 0, 0, 1, 1, 0]


def test_many_bad_steps_go_back_to_the_last_checkpoint_and_on_from_there(tmp_path: Path) -> None:
    spoiled = trained(tmp_path / "a", spoil=lambda samples, times: samples >= 10 and times == 1 and samples < 16)
    trained(tmp_path / "b")
    assert spoiled.skipped == [10, 12, 14]
    assert curve(tmp_path / "a") == curve(tmp_path / "b")
    rates = [row["samples_per_s"] for row in read_log(tmp_path / "a" / "metrics.jsonl")]
    assert min(rates) > 0


def test_before_the_first_interval_it_goes_back_to_the_start(tmp_path: Path) -> None:
    trained(tmp_path / "a", spoil=lambda samples, times: samples < 6 and times == 1)
    trained(tmp_path / "b")
    assert curve(tmp_path / "a") == curve(tmp_path / "b")


def test_it_fails_loudly_when_going_back_did_not_help(tmp_path: Path) -> None:
    with pytest.raises(Diverged, match="not finite in 3 steps in a row"):
        trained(tmp_path, spoil=lambda samples, times: samples >= 10)


@pytest.mark.parametrize("first", [2, 8, 10, 18])
def test_a_resume_is_exact_wherever_it_falls(tmp_path: Path, first: int) -> None:
    """Before the first interval, on it, and on the border of an epoch (10, of which a checkpoint is made at the end of the run)."""
    trained(tmp_path / "once")
    trained(tmp_path / "twice", samples=first)
    trained(tmp_path / "twice")
    assert curve(tmp_path / "twice") == curve(tmp_path / "once")


@pytest.mark.parametrize("other", [{"task": "curve"}, {"task": "line", "data": {"digest": "a"}}])
def test_a_checkpoint_of_another_model_or_data_is_refused_and_stays(tmp_path: Path, other: dict) -> None:
    trained(tmp_path)
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    with pytest.raises(UnsafeResume, match="the checkpoint has another"):
        trained(tmp_path, samples=48, identity=other)
    assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == before


def test_rows_beyond_the_checkpoint_are_cut(tmp_path: Path) -> None:
    trained(tmp_path / "once")
    trained(tmp_path / "twice")
    shutil.rmtree(tmp_path / "twice" / "checkpoints" / "samples-000000000024")
    trained(tmp_path / "twice")
    assert curve(tmp_path / "twice") == curve(tmp_path / "once")


def test_a_line_torn_by_a_kill_is_cut(tmp_path: Path) -> None:
    log = MetricLog(tmp_path / "metrics.jsonl", writes=True)
    log.add(2, {"loss": 1.0})
    log.add(4, {"loss": float("nan")})
    whole = log.path.read_text()
    log.path.write_text(whole + '{"samples": 6, "lo')
    log.cut(4)
    assert log.path.read_text() == whole
    assert [row["loss"] for row in read_log(log.path)] == [1.0, None]
    log.cut(2)
    assert [json.loads(line)["samples"] for line in log.path.read_text().splitlines()] == [2]


def test_a_full_disk_does_not_end_the_training_while_it_may_be_freed(tiny_disk: Path) -> None:
    """Two commits fail, space is made, the third succeeds: the same curve, and no row of the log is lost."""
    trained(tiny_disk / "undisturbed", samples=40)
    ballast = tiny_disk / "ballast"

    def fill_or_free(samples: int, times: int) -> bool:
        if samples == 14:
            with pytest.raises(OSError, match="No space left"), open(ballast, "wb") as file:
                while True:
                    file.write(bytes(4096))
                    file.flush()
        if samples == 26:
            ballast.unlink()
        return False

    trainer = trained(tiny_disk / "full", samples=40, background=False, spoil=fill_or_free)
    assert not trainer.skipped
    failures = [row["checkpoint_failures"] for row in read_log(tiny_disk / "full" / "metrics.jsonl")]
    assert max(failures) == 2 and failures[-1] == 0
    assert without(curve(tiny_disk / "full"), "checkpoint_failures") == without(curve(tiny_disk / "undisturbed"), "checkpoint_failures")


def test_three_commits_that_fail_end_it_and_the_one_before_stands(tiny_disk: Path) -> None:
    def fill(samples: int, times: int) -> bool:
        if samples == 14:
            with pytest.raises(OSError, match="No space left"), open(tiny_disk / "ballast", "wb") as file:
                while True:
                    file.write(bytes(4096))
                    file.flush()
        return False

    with pytest.raises(TryAgain, match=r"3 checkpoint\(s\) in a row could not be written") as caught:
        trained(tiny_disk / "run", samples=80, background=False, spoil=fill)
    assert caught.value.exit_code == 75
    store = CheckpointStore(tiny_disk / "run" / "checkpoints", Alone())
    assert store.newest(progress_exists=True).samples == 8
    assert sorted(p.name for p in store.folder.iterdir()) == ["samples-000000000000", "samples-000000000008"]
    (tiny_disk / "ballast").unlink()
    trained(tiny_disk / "run", samples=80)
    trained(tiny_disk / "undisturbed", samples=80)
    assert curve(tiny_disk / "run") == curve(tiny_disk / "undisturbed")


def without(rows: list[dict], name: str) -> list[dict]:
    return [{k: v for k, v in row.items() if k != name} for row in rows]
