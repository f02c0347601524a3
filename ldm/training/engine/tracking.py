"""The tracker that shows a training: Accelerate's `log_with`, begun, continued and flushed on the rank that has one."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from data_shards import durable
from data_shards.errors import InputError

LOGGER = logging.getLogger("retinaforge")
NAMED_RUNS: dict[str, tuple[str, dict[str, str], Callable[[Any], str]]] = {
    "wandb": ("id", {"resume": "allow"}, lambda tracker: tracker.run.id),
    "mlflow": ("run_id", {}, lambda tracker: tracker.active_run.info.run_id),
}
"""Trackers that know a run by a name of their own: the option that takes it, what goes with it, and how to ask for it."""


class Tracking:
    """What goes to the tracker; without one, nothing does.

    Attributes:
        run: the tracker's own name of this run, on rank 0, where it has one: to go on with.
    """

    def __init__(self, accelerator: Accelerator, name: str) -> None:
        self.accelerator, self.name = accelerator, name
        self.run: str | None = None
        self.started = False

    def begin(self, samples: int, run: str | None = None) -> None:
        """Begin, or begin anew after going back: what a tracker holds beyond `samples` is not shown any more.

        Args:
            run: the tracker's own name of the run to go on with.

        Raises:
            InputError: the tracker does not start.
        """
        if not self.accelerator.log_with:
            return
        self.close()
        folder = Path(self.accelerator.project_dir)
        with durable.explained(folder):
            durable.make_folder(folder)
        options = {"purge_step": samples + 1} if self.name == "tensorboard" else {}
        run_option, with_it, name_of = NAMED_RUNS.get(self.name, ("", {}, None))
        if name_of and run:
            options = {run_option: run, **with_it}
        try:
            self.accelerator.init_trackers(self.name, init_kwargs={self.name: options})
        except Exception as error:  # whatever a service or its library may raise
            raise InputError(
                f"the tracker {self.name!r} did not start: {type(error).__name__}: {error}",
                where="engine.tracker",
                expected="an account, a server or a folder that it can reach",
                mend=f"see the documentation of {self.name}, or engine.tracker=none",
            ) from error
        self.started = True
        if name_of and self.accelerator.is_main_process:
            self.run = name_of(self.accelerator.get_tracker(self.name))

    def log(self, values: dict[str, float], samples: int) -> None:
        """One that fails on the way, as a server that is gone, ends no training; the log file has all rows."""
        if not self.started:
            return
        # mlflow's folders bear no 'loss' beside 'loss/l1'
        named = {"loss/total" if name == "loss" else name: value for name, value in values.items()}
        try:
            self.accelerator.log(named, step=samples)
        except Exception as error:
            LOGGER.warning("the tracker %r is left out from %d samples on: %s", self.name, samples, error)
            self.started = False

    def close(self) -> None:
        """Flush, where it was started."""
        if self.started:
            for tracker in self.accelerator.trackers:
                tracker.finish()
        self.started = False
