"""`ckpt convert`: what it writes, stock DeepSpeed engines load under any stage and world, and carry on as AdamW would have."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
import torch
import yaml

from data_shards.errors import TryAgain
from launch.cli.ckpt import stores
from ldm.checkpoints.universal import write_universal
from tests.ranks import shared
from tests.runs import configured

pytest.importorskip("deepspeed", reason="the extra 'deepspeed' is not installed: pip install -c constraints.txt -e '.[deepspeed]'")

ALONE = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}  # DeepSpeed asks for them
TINY = configured(
    loop={"samples": 24, "batch": 8, "log_every": 8, "checkpoint_every": 8},
    optimizer={"lr": 1.0e-3, "beta2": 0.95, "weight_decay": 0.1},
    engine={"tracker": "none", "mode": "zero2"},
)


def called(log: Path, *words: object, world: int = 1, expect: int = 0, wrapper: tuple[str, ...] = ()) -> str:
    """What all ranks of a command line say, or of a module in its place."""
    alone = ALONE if wrapper and world == 1 else {}
    codes = shared().run(log, [*words], world, wrapper=[*wrapper], **alone)
    assert codes == [expect] * world, log.read_text()[-3000:]
    return log.read_text()


@pytest.fixture(scope="module")
def run(packed: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Both trainings, by two ranks under ZeRO-2."""
    folder = tmp_path_factory.mktemp("universal") / "run"
    config = folder.with_suffix(".yaml")
    config.write_text(yaml.safe_dump({**TINY, "data": {"dataset": str(packed)}}))
    for words, world in ((["train", "vqgan"], 2), (["encode"], 1), (["train", "diffusion"], 2)):
        called(folder.with_suffix(".log"), *words, config, f"run={folder}", world=world)
    return folder


@pytest.fixture(scope="module")
def converted(run: Path) -> Path:
    out = run.with_name("converted")
    said = called(out.with_suffix(".log"), "ckpt", "convert", run, out)
    assert [line.split(": ")[1] for line in said.splitlines()] == [
        str(out / name) for name in ("vqgan/discriminator", "vqgan/vqgan", "diffusion/denoiser")
    ]
    return out


CASES = [(stage, ranks) for stage in (1, 2, 3) for ranks in (1, 2)] if os.environ.get("FAULTS") == "all" else [(2, 1), (3, 2)]


@pytest.mark.parametrize(("stage", "ranks"), CASES)
def test_stock_deepspeed_carries_every_network_on(run: Path, converted: Path, tmp_path: Path, stage: int, ranks: int) -> None:
    """Weights, moments and step bit for bit; see stock_deepspeed.py for what is compared."""
    said = called(tmp_path / "said.log", run, converted, stage, world=ranks, wrapper=("tests.launch.stock_deepspeed",))
    assert said.count("carried on: ") == 3, said


def test_a_taken_place_is_refused(run: Path, converted: Path, tmp_path: Path) -> None:
    assert "the place is taken" in called(tmp_path / "said.log", "ckpt", "convert", run, converted, expect=2)


def test_the_files_are_plain_and_nothing_else_is_there(converted: Path) -> None:
    """Tensors, numbers, lists and dicts: weights_only loads them all, so they carry no code."""
    folder = converted / "diffusion" / "denoiser"
    assert (folder / "latest_universal").read_text() == "samples-000000000024"
    files = sorted(path for path in converted.rglob("*") if path.is_file())
    for path in files:
        assert path.name == "latest_universal" or torch.load(path, weights_only=True) is not None
    assert {path.name for path in files} == {
        *("latest_universal", "mp_rank_00_model_states.pt", "zero_pp_rank_0_mp_rank_00_model_states.pt"),
        *("optimizer_state.pt", "fp32.pt", "exp_avg.pt", "exp_avg_sq.pt", "step.pt"),
    }


def test_of_a_run_whose_newest_checkpoint_is_damaged_the_one_before_is_converted(run: Path, tmp_path: Path) -> None:
    copy = tmp_path / "run"
    shutil.copytree(run / "vqgan" / "checkpoints", copy / "vqgan" / "checkpoints")
    part = copy / "vqgan" / "checkpoints" / "samples-000000000024" / "rank-00001.safetensors"
    content = bytearray(part.read_bytes())
    content[-1] ^= 1
    part.write_bytes(content)
    write_universal(stores(copy), tmp_path / "out")
    for network in ("vqgan", "discriminator"):
        assert (tmp_path / "out" / "vqgan" / network / "latest_universal").read_text() == "samples-000000000016"
    state = torch.load(tmp_path / "out/vqgan/discriminator/samples-000000000016/mp_rank_00_model_states.pt", weights_only=True)
    assert (state["global_samples"], state["global_steps"]) == (16, 1), "the discriminator joined after 8 samples"


def test_on_a_full_disk_nothing_is_left(run: Path, tiny_disk: Path) -> None:
    with pytest.raises(TryAgain, match="No space left"):
        write_universal(stores(run), tiny_disk / "out")
    assert list(tiny_disk.iterdir()) == []
