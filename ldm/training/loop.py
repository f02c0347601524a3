"""The one training loop. Reads from top to bottom; a trainer is a small object with `losses(batch)`."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, Protocol

import torch
from torch import Tensor

from data_shards.errors import RetinaforgeError, UnsafeResume
from data_shards.reading.batch import Batch
from data_shards.reading.stream import CubeStream
from ldm.checkpoints.store import CheckpointStore, Reader, State
from ldm.speed import Clock
from ldm.training.clock import Work
from ldm.training.commits import Commits
from ldm.training.config import LoopConfig
from ldm.training.engine import Engine
from ldm.training.log import MetricLog, read_log
from ldm.training.validation import Best, better, validated

LOGGER = logging.getLogger("retinaforge")


class Diverged(RetinaforgeError):
    """The loss stayed non-finite, also after going back to the last checkpoint."""


class Trainer(Protocol):
    """What the loop asks of a trainer.

    `samples` is the place of a step: of the one that comes, or, for what is judged after it, of the one that was taken last.
    """

    USED: tuple[str, ...]  # how the names of those tensors of the state begin that are read by whoever uses what was trained

    def taking_part(self, samples: int) -> tuple[str, ...]: ...
    def may_be_best(self, samples: int) -> bool: ...
    def start_epoch(self, epoch: int) -> dict[str, float]: ...
    def losses(self, batch: Batch, samples: int) -> tuple[dict[str, Tensor], dict[str, Tensor]]: ...
    def learning_rates(self, samples: int) -> dict[str, float]: ...
    def after_step(self, samples: int, batch: int, *, skipped: bool) -> dict[str, float]: ...
    def as_loaded(self) -> AbstractContextManager[None]: ...
    def validate(self, batch: Batch, samples: int) -> dict[str, Tensor]: ...
    def state(self) -> State: ...
    def load(self, read: Reader) -> None: ...


Report = Callable[[int, dict[str, float]], None]


def fit(
    trainer: Trainer,
    stream: CubeStream,
    engine: Engine,
    store: CheckpointStore,
    log: MetricLog,
    config: LoopConfig,
    *,
    identity: dict[str, Any],
    record: dict[str, Any] | None = None,
    validation: CubeStream | None = None,
    stop: Callable[[], bool],
    report: Report = lambda samples, values: None,
    stepped: Callable[[], None] = lambda: None,
) -> int:
    """Train until `config.samples` are seen or `stop()` holds on any rank; returns the samples seen.

    Args:
        identity: what a checkpoint must share with this run to be continued (dataset digest, model configuration).
        record: what a checkpoint keeps besides, for whoever reads it (the whole configuration).
        validation: held-out samples, a micro batch at a time; None where there are none.
        report, stepped: called with each logged row, and after each step.

    A run that begins commits its untrained state first: whatever ends it before the first interval, it can go on.

    Raises:
        UnsafeResume: the newest checkpoint cannot be loaded or belongs to another run. Diverged: see LoopConfig.
    """
    kept = {"identity": identity, "record": record or {}}
    samples, epoch, best = _resume(trainer, engine, store, log, kept, config.batch)
    batches, clock, commits = stream.batches(samples), Clock(engine.device, engine.pace.entered), Commits(store)
    work, bad, returned, counted = Work(engine.device, engine.dtype), 0, False, samples
    part_taken: tuple[str, ...] = ()
    while samples < config.samples:
        epoch_values: dict[str, float] = {}
        if part_taken != trainer.taking_part(samples):
            part_taken = trainer.taking_part(samples)
            engine.pace.changed()
        if samples // stream.epoch_samples > epoch:
            epoch = samples // stream.epoch_samples
            with clock("epoch"):
                epoch_values = trainer.start_epoch(epoch)

        # forward and backward, micro batch by micro batch
        values: dict[str, Tensor] = {}
        with clock("data"):
            micro = _micro_batches(next(batches), engine.config.accumulation)
        for i, part in enumerate(micro):
            with engine.micro_batch(last=i == len(micro) - 1), work.counted(len(part.keys)):
                with clock("forward"):
                    losses, terms = trainer.losses(part, samples)
                with clock("backward"):
                    engine.backward(losses)
            work.trained(set(losses))
            for name, value in {**terms, "loss": sum(loss.detach() for loss in losses.values())}.items():
                values[name] = values.get(name, torch.zeros((), device=engine.device)) + value / len(micro)

        # step, or skip on every rank together
        with clock("step"):
            norms = engine.gradient_norms()
            finite = all(bool(v.isfinite()) for v in (*values.values(), *norms.values()))
            (skipped,) = engine.any_rank(not finite)
            engine.step({} if skipped else trainer.learning_rates(samples))
            step_values = trainer.after_step(samples, config.batch, skipped=skipped)
        bad = bad + 1 if skipped else 0
        samples += config.batch

        if bad >= config.max_bad_steps:
            if returned:
                raise Diverged(
                    f"loss or gradient not finite in {bad} steps in a row",
                    where=f"{samples} samples; {', '.join(k for k, v in values.items() if not v.isfinite()) or 'gradients'}",
                    expected="finite values",
                    mend="lower the learning rate, raise optimizer.warmup_samples, or check the data: retinaforge data verify",
                )
            commits.settle()
            samples, epoch, best = _resume(trainer, engine, store, log, kept, config.batch)
            batches, bad, returned, counted, part_taken = stream.batches(samples), 0, True, samples, ()
            clock.restart()
            continue

        # judge, log, commit, stop
        due, judged = samples >= config.samples or _crossed(samples, config.batch, config.checkpoint_every), {}
        if due and validation is not None and config.validate_samples:
            with clock("validate"), engine.autocast():
                judged = validated(trainer, engine.comm, validation, samples=samples - config.batch, limit=config.validate_samples)
            if trainer.may_be_best(samples - config.batch):
                best = better(best, judged, samples)
        if epoch_values or judged or _crossed(samples, config.batch, config.log_every) or samples >= config.samples:
            names = sorted(values)
            unreadable = torch.tensor(len(stream.bad), dtype=torch.float64, device=engine.device)
            *sums, unreadable = engine.comm.all_reduce_sum_(torch.stack([*(values[n].double() for n in names), unreadable])).tolist()
            row = {
                **{name: value / engine.world for name, value in zip(names, sums, strict=True)},
                **({"data/unreadable": unreadable} if unreadable else {}),
                **{f"grad_norm/{k}": float(v) for k, v in norms.items()},
                **step_values,
                **epoch_values,
                **judged,
                **{f"lr/{k}": v for k, v in trainer.learning_rates(samples - config.batch).items()},
                **clock.row(samples - counted),
            }
            row |= work.row(row["samples_per_s"], engine.world)
            row |= {"epoch": float(epoch), "skipped": float(skipped), "checkpoint_failures": float(commits.failures)}
            counted = samples
            log.add(samples, row)
            engine.tracking.log(row, samples)
            report(samples, row)
        stopping, writing = engine.any_rank(stop(), store.writing)
        last = stopping or samples >= config.samples
        with clock("checkpoint"):
            if store.pending and not writing:
                commits.settle()
            if last or due:
                log.flush()
                state = {"epoch": epoch, "best": best, "tracker": engine.tracking.run, **kept}
                commits.begin(samples, state, {**engine.state(), **trainer.state()})
            if last or not config.background:
                commits.settle(last=last)
        stepped()
        if stopping:
            break
    return samples


def _crossed(samples: int, batch: int, every: int) -> bool:
    """True when this step carried the count over a multiple of `every`."""
    return samples // every != (samples - batch) // every


def _micro_batches(batch: Batch, accumulation: int) -> list[Batch]:
    """Equal parts of a rank's batch, neighbours in position kept together."""
    if accumulation == 1:
        return [batch]
    n = len(batch.keys) // accumulation
    return [batch.part(slice(i * n, (i + 1) * n)) for i in range(accumulation)]


def _resume(
    trainer: Trainer, engine: Engine, store: CheckpointStore, log: MetricLog, kept: dict[str, Any], batch: int
) -> tuple[int, int, Best | None]:
    """(samples, epoch, best) of the newest checkpoint, its state loaded; (0, -1, None) for a new run, its first state committed."""
    engine.pace.entered("start")  # to read and check it may take minutes
    checkpoint = store.newest(progress_exists=log.exists())
    if checkpoint is None:
        engine.tracking.begin(0)
        state = {"epoch": -1, "best": None, "tracker": engine.tracking.run, **kept}
        store.commit(0, state, {**engine.state(), **trainer.state()})
        return 0, -1, None
    for key in {**kept["identity"], **checkpoint.state["identity"]}:
        mine, theirs = kept["identity"].get(key), checkpoint.state["identity"].get(key)
        if json.loads(json.dumps(mine)) != theirs:
            raise UnsafeResume(
                f"the checkpoint has another {key}: {theirs}",
                where=checkpoint.folder,
                expected=str(mine),
                mend="continue with the configuration in run.yaml, or give the run another folder: run=runs/NAME",
            )
    read = Reader(checkpoint)
    engine.load(read)
    trainer.load(read)
    log.cut(checkpoint.samples)
    if engine.is_main:
        _say_other_rates(trainer, log, kept, checkpoint.state, batch)
    engine.tracking.begin(checkpoint.samples, checkpoint.state.get("tracker"))
    best = checkpoint.state.get("best")
    if best and not trainer.may_be_best(best["samples"] - batch):  # the run is longer now, and comes to more than it did
        best = None
    return checkpoint.samples, checkpoint.state["epoch"], best


def _say_other_rates(trainer: Trainer, log: MetricLog, kept: dict[str, Any], state: dict[str, Any], batch: int) -> None:
    """A decay over a run that is longer now has other rates than those that were trained with: say both."""
    last = (read_log(log.path) or [{"samples": batch}])[-1]
    now = trainer.learning_rates(last["samples"] - batch)
    then = {name: last.get(f"lr/{name}") for name in now}
    changed = [name for name in now if then[name] and not math.isclose(now[name], then[name], rel_tol=1e-6)]
    if not changed:
        return
    stage = kept["identity"].get("stage", "")
    begun = state["record"].get("config", {}).get(stage)
    former = begun["optimizer"].get("decay_samples") or begun["loop"]["samples"] if begun else 0
    rates = ", ".join(f"{name} {then[name]:.3g} → {now[name]:.3g}" for name in changed)
    keep = f"; {stage}.optimizer.decay_samples={former} keeps the decay as it was, and its last rate from there on" if former else ""
    LOGGER.warning("at %d samples the learning rate was another, as its decay ends elsewhere now: %s%s", last["samples"], rates, keep)
