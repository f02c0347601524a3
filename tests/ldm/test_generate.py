"""A set that cannot be made is refused before anything is written; making one is tested through the command line."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from data_shards.errors import InputError
from ldm.diffusion import ObjectiveConfig
from ldm.generate import generate_set
from ldm.sampler import SamplerConfig

PLAN = {"count": 4, "shard": 2, "seed": 0, "sampler": SamplerConfig(steps=2), "batch": 2}


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"count": 0}, "count 0"),
        ({"shard": 0}, "shard 0"),
        ({"batch": 0}, "batch 0"),
        ({"task": (3, 2)}, "task 3/2"),
        ({"sampler": SamplerConfig(name="ddim")}, "does not solve objective 'flow'"),
        ({"autoencoder": "another"}, "latents of another autoencoder"),
    ],
)
def test_what_cannot_be_made_leaves_nothing(tmp_path: Path, wrong: dict, message: str) -> None:
    options = {**PLAN, **wrong}
    autoencoder = SimpleNamespace(digest=options.pop("autoencoder", "a"), data={"digest": "d"})
    denoiser = SimpleNamespace(digest="n", autoencoder="a", objective=ObjectiveConfig(target="flow"))
    with pytest.raises(InputError, match=message):
        generate_set(autoencoder, denoiser, tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()
