"""What an earlier version left can be used: it loads, means what it meant, and gives the same numbers.

`run-9e356b7.tar.xz` is a run folder that commit 9e356b7 wrote: both trainings at 8 samples, weights of a repeated pattern (so that the
archive is small), moments of zero. `expected.npz` in it holds what that commit made of it: two sampled latents, a reconstruction.
"""

from __future__ import annotations

import json
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from diffusers.models.attention_processor import Attention

from data_shards import durable
from data_shards.errors import InputError
from launch.run import Run
from launch.tree import load
from ldm.checkpoints.commit import COMMIT, digest_of
from ldm.checkpoints.store import CheckpointStore
from ldm.checkpoints.trained import load_autoencoder, load_denoiser
from ldm.comm import Alone
from ldm.generation.images import latents_of
from ldm.models.config import SamplerConfig

ARCHIVE = Path(__file__).parents[2] / "golden" / "checkpoints" / "run-9e356b7.tar.xz"


@pytest.fixture(scope="module")
def earlier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("earlier")
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(folder, filter="data")
    return folder / "run"


def test_an_earlier_denoiser_samples_what_it_sampled(earlier: Path) -> None:
    denoiser = load_denoiser(earlier / "diffusion")
    z = latents_of(denoiser, np.arange(2), seed=0, sampler=SamplerConfig(steps=4), noise="mt19937")
    expected = torch.from_numpy(np.load(earlier / "expected.npz")["latents"])
    torch.testing.assert_close(z, expected, rtol=1e-3, atol=1e-4)  # other heads than its own differ by 0.015
    assert {m.inner_dim // m.heads for m in denoiser.net.modules() if isinstance(m, Attention)} == {8}


def test_an_earlier_autoencoder_reconstructs_what_it_did(earlier: Path) -> None:
    stored = (1000 + 50 * np.arange(4 * 8 * 8).reshape(1, 4, 8, 8)).repeat(4, 2).repeat(4, 3).astype(np.int32) % 3000
    rec_BCHW, index_BHW = load_autoencoder(earlier / "vqgan").reconstruct(torch.from_numpy(stored).to(torch.uint16), None)
    expected = np.load(earlier / "expected.npz")
    torch.testing.assert_close(rec_BCHW[0, :, ::8, ::8], torch.from_numpy(expected["reconstruction"]), rtol=1e-3, atol=1e-4)
    assert np.array_equal(index_BHW.numpy(), expected["index"])


def test_an_earlier_run_goes_on_with_the_same_words(earlier: Path, tmp_path: Path) -> None:
    """A preset of today has other heads: a folder begun with the former ones keeps them, unless the words say otherwise."""
    run = shutil.copytree(earlier, tmp_path / "run")
    tree = yaml.safe_load((run / "run.yaml").read_text())
    del tree["diffusion"]["model"]["attention"]
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump({**tree, "run": str(run)}))
    config = load(str(tmp_path / "mine.yaml"))
    assert config.diffusion.model.attention_head_dim == 8
    Run(config).check()
    Run(config).freeze()  # and it goes on once more
    assert load(str(tmp_path / "mine.yaml")).diffusion.model.attention_head_dim == 8
    Run(load(str(tmp_path / "mine.yaml"))).check()
    with pytest.raises(InputError, match=r"diffusion\.model\.attention_head_dim"):
        Run(load(str(tmp_path / "mine.yaml"), ["diffusion.model.attention_head_dim=64"])).check()
    assert load(str(tmp_path / "mine.yaml"), [f"run={tmp_path}/fresh"]).diffusion.model.attention_head_dim == 64


@pytest.mark.parametrize(("target", "refused"), [("flow", False), ("v", False), ("epsilon", True)])
def test_what_was_trained_on_another_noise_schedule_is_not_sampled(earlier: Path, tmp_path: Path, target: str, refused: bool) -> None:
    folder = shutil.copytree(earlier / "diffusion", tmp_path / "diffusion")
    path = next(folder.rglob(COMMIT))
    commit = {k: v for k, v in json.loads(path.read_text()).items() if k != "sha256"}
    commit["state"]["identity"]["objective"]["target"] = target
    durable.write_json(path, {**commit, "sha256": digest_of(commit)})
    if not refused:
        assert load_denoiser(folder).objective.target == target
        return
    with pytest.raises(InputError, match="squaredcos_cap_v2"):
        load_denoiser(folder)


def test_the_best_of_an_earlier_run_is_none_as_it_may_be_unquantised(earlier: Path) -> None:
    with pytest.raises(InputError, match="no checkpoint of the best validation loss"):
        load_autoencoder(earlier / "vqgan", best=True)
    assert CheckpointStore(earlier / "vqgan" / "checkpoints", Alone()).newest(progress_exists=True).state["best"] is None
