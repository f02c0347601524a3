"""The engine is what was asked for, or nothing."""

from __future__ import annotations

import pytest
from accelerate import Accelerator

from data_shards.errors import InputError
from ldm.training.config import EngineConfig
from ldm.training.engine import Engine


@pytest.mark.parametrize("mode", ["auto", "ddp"])
def test_a_process_that_came_up_alone_among_two_is_refused(monkeypatch: pytest.MonkeyPatch, mode: str) -> None:
    """Accelerate falls back to one process in silence: each rank would train a copy of the run."""
    for name, value in {"WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("ldm.training.engine.start.Accelerator", lambda **words: alone)
    with monkeypatch.context() as single:
        for name in ("WORLD_SIZE", "RANK", "LOCAL_RANK"):
            single.delenv(name)
        alone = Accelerator(cpu=True)
    with pytest.raises(InputError, match=r"1 process\(es\) came up as"):
        Engine(EngineConfig(mode=mode, tracker="none"), batch=2)
