"""Trying again, with growing pauses, what may pass by itself."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import TypeVar

from data_shards.errors import TryAgain, without_credentials

LOGGER = logging.getLogger("retinaforge")
PAUSES_S = (0.1, 0.5, 2.0, 8.0)
T = TypeVar("T")


class Transient(Exception):
    """What an action raises when it may succeed later.

    Args:
        said: the trouble, for people.
        lasting: raised in the end in place of TryAgain, where trouble that stays has a meaning of its own.
    """

    def __init__(self, said: str, lasting: OSError | None = None) -> None:
        super().__init__(said)
        self.lasting = lasting


def retrying(action: Callable[[], T], where: object, pauses_s: tuple[float, ...] = PAUSES_S) -> T:
    """The result of `action`, called again after each pause while it raises Transient.

    Raises:
        TryAgain: it failed each time. OSError: as the last Transient says.
    """
    for attempt, pause_s in enumerate((*pauses_s, None)):
        try:
            return action()
        except Transient as error:
            if pause_s is None and error.lasting:
                raise error.lasting from error
            if pause_s is None:
                raise TryAgain(
                    f"reading failed {attempt + 1} times: {error}",
                    where=where,
                    expected="a store that answers",
                    mend="look after the store and run the same command again",
                ) from error
            LOGGER.warning("%s", without_credentials(f"{where}: {error}; trying again in {pause_s:g} s"))
            time.sleep(pause_s)
    raise AssertionError("unreachable")
