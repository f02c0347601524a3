"""Tiny trainings of several ranks: how they are started, and everything that an end is compared by."""

from __future__ import annotations

import json
from pathlib import Path

import yaml

from ldm.checkpoints.store import CheckpointStore
from ldm.comm import Alone
from ldm.training.clock import TIMINGS
from ldm.training.log import read_log
from tests.ranks import Ranks

NETWORKS = {
    "segmenter": {"model": {"channels": 2}},
    "vqgan": {
        "model": {"compression": 4, "channels": 16, "layers": 1, "norm_groups": 4, "latent_channels": 4},
        "codebook": {"codes": 32, "kmeans_vectors": 1024, "dead_below": 0.1},
        "discriminator": {"channels": 8, "layers": 2},
        "loss": {"gan_start_samples": 8},
    },
    "diffusion": {"model": {"channels": 16, "layers": 1}},
    "features": {"model": {"channels": 8, "levels": 2, "dimension": 8}},
    "copies": {"model": {"channels": 8, "levels": 2, "dimension": 8, "side": 0}},
}


def configured(**sections: dict[str, object]) -> dict[str, dict[str, object]]:
    """A configuration of all trainings: tiny networks, and these sections in each."""
    return {stage: {**networks, **sections} for stage, networks in NETWORKS.items()}


LOOP = {"samples": 48, "batch": 8, "log_every": 8, "checkpoint_every": 8, "background": False, "validate_samples": 4}
# nothing is small enough to stay whole on every rank: the tiny networks are cut up as large ones are
STAGE3 = {"zero_optimization": {"stage": 3, "stage3_param_persistence_threshold": 0}}
# Adam moves a weight by the rate whatever the size of its gradient, so rounding in a gradient near 0 grows to the rate
SHARED = {"loop": LOOP, "engine": {"tracker": "none", "accumulation": 2, "clip": 0.5}, "optimizer": {"lr": 1.0e-5}}
TINY = configured(**SHARED)

MONITOR = ("val/angle_rad/", "val/sid_nats/", "val/kl_nats/", "val/js_nats/")
"""How the names of the monitor's figures begin: distances of what is nearly alike, and of counts in bins. Rounding shows in them."""


class Place:
    """A folder of runs of one tiny configuration, with latents for the diffusion."""

    def __init__(self, folder: Path, packed: Path, ranks: Ranks) -> None:
        self.folder, self.ranks = folder, ranks
        (folder / "tiny.yaml").write_text(yaml.safe_dump({**TINY, "data": {"dataset": str(packed)}}))
        (folder / "stage3.json").write_text(json.dumps(STAGE3))
        self.train("first", "vqgan", "ddp", 1, expect=True)
        assert ranks.run(folder / "encode.log", ["encode", folder / "tiny.yaml", f"run={folder}/first-vqgan"], 1) == [0]

    def run(self, name: str, stage: str) -> Path:
        return self.folder / f"{name}-{stage}"

    def engine(self, mode: str) -> str:
        """The setting that chooses a mode; 'ddp' is left to what the launcher says, so that it holds for one rank too."""
        return {"zero3": f"ds_config={self.folder}/stage3.json", "ddp": "mode=auto"}.get(mode, f"mode={mode}")

    def said(self, name: str, stage: str) -> str:
        return (self.folder / f"{name}-{stage}.log").read_text()

    def train(
        self, name: str, stage: str, mode: str, world: int, *overrides: str, rank: int = 0, step: int = -1, expect: bool | None = None
    ) -> list[int]:
        """Exit codes by rank of a training in the run `name`; killed at a durable step of `rank`, if one is given.

        Args:
            mode: of the engine; 'ddp' on one rank is one process without any wrapper.
            expect: whether all ranks have to end well.
        """
        run = self.run(name, stage)
        run.mkdir(exist_ok=True)
        if stage == "diffusion" and not (run / "latents").exists():
            (run / "latents").symlink_to(self.run("first", "vqgan") / "latents")
        words = ["train", stage, self.folder / "tiny.yaml", f"run={run}"]
        words.append(f"{stage}.engine.{self.engine(mode)}")
        wrapper = ["tests.faults.crash", run / "ids", rank, step]
        codes = self.ranks.run(run.with_suffix(".log"), [*words, *overrides], world, wrapper=wrapper)
        assert expect is None or expect == (not any(codes)), f"{codes}\n{self.said(name, stage)[-3000:]}"
        return codes

    def once(self, name: str, stage: str, *how: object) -> None:
        """A training that several tests look at."""
        if not self.run(name, stage).exists():
            self.train(name, stage, *how, expect=True)

    def curve(self, name: str, stage: str) -> list[dict[str, float]]:
        """The log without what differs from run to run."""
        rows = read_log(self.run(name, stage) / stage / "metrics.jsonl")
        return [{k: v for k, v in row.items() if not k.startswith(TIMINGS)} for row in rows]

    def store(self, name: str, stage: str) -> CheckpointStore:
        return CheckpointStore(self.run(name, stage) / stage / "checkpoints", Alone())

    def parts(self, name: str, stage: str) -> list[list[tuple[str, str]]]:
        """sha256 of every part of the checkpoints, newest first; nothing else may lie there."""
        store = self.store(name, stage)
        committed = store.committed()
        assert sorted(p.name for p in store.folder.iterdir()) == sorted(c.folder.name for c in committed)
        return [c.parts for c in committed]

    def ids(self, name: str, stage: str) -> dict[int, str]:
        """Key of the sample that was trained on at each position, over all ranks; a position that was gone back to counts once."""
        found: dict[int, str] = {}
        for file in sorted((self.run(name, stage) / "ids").iterdir()):
            for line in file.read_text().splitlines():
                for position, key in json.loads(line)[1].items():
                    assert found.setdefault(int(position), key) == key, f"position {position} held two samples"
        return found
