"""When checkpoints are written, and what happens when one cannot be."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from data_shards.errors import RetinaforgeError, TryAgain
from ldm.checkpoints.store import CheckpointStore, State

LOGGER = logging.getLogger("retinaforge")


class Commits:
    """Checkpoints whose failure does not end the training at once: the one before stands, and the next may succeed."""

    PATIENCE = 3

    def __init__(self, store: CheckpointStore) -> None:
        self.store, self.failures = store, 0

    def begin(self, samples: int, state: dict[str, Any], tensors: State) -> None:
        """Start to write, once the one before is settled."""
        self.settle()
        self._tried(lambda: self.store.begin(samples, state, tensors))

    def settle(self, *, last: bool = False) -> None:
        """Publish what is pending.

        Raises:
            TryAgain: the third failure in a row, or the `last` one there will be.
        """
        if self.store.pending:
            self._tried(self.store.finish, last=last)
            return
        if last and self.failures:
            raise TryAgain("the last checkpoint could not be written", where=self.store.folder, mend="run the same command again")

    def _tried(self, write: Callable[[], Any], *, last: bool = False) -> None:
        try:
            write()
        except RetinaforgeError as error:
            self.failures += 1
            if last or self.failures >= self.PATIENCE:
                raise TryAgain(
                    f"{self.failures} checkpoint(s) in a row could not be written: {error.what}",
                    where=error.where,
                    expected=f"the one before stands, in {self.store.folder}",
                    mend=error.mend or "run the same command again",
                ) from error
            LOGGER.warning("a checkpoint could not be written, training goes on: %s", error)
        else:
            if not self.store.pending:
                self.failures = 0
