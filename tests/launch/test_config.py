"""Configuration: every preset resolves, every wrong word is named with its nearest, nothing is run from YAML."""

from __future__ import annotations

import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from data_shards.errors import InputError
from launch.parse import parse_yaml
from launch.run import Run
from launch.tree import from_tree, load, preset_names, to_tree, to_yaml


@pytest.mark.parametrize("name", preset_names())
def test_presets_resolve_and_survive_yaml(name: str) -> None:
    config = load(name)
    assert from_tree(yaml.safe_load(to_yaml(config))) == config


def test_the_four_published_presets_are_there() -> None:
    assert {"demo", "fundus-rgb", "retina-224", "retina-672"} <= set(preset_names())
    assert load("retina-672").data.phantom.size == 672 and load("retina-672").diffusion.model.channels == 512


def test_overrides_reach_any_depth_and_keep_their_type() -> None:
    config = load("demo", ["vqgan.model.channels=32", "data.splits={train: 0.5, val: 0.5}", "sample.quantise=false", "run=runs/x y"])
    assert (config.vqgan.model.channels, config.data.splits["val"], config.sample.quantise, config.run) == (32, 0.5, False, "runs/x y")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("vqgan.model.chanels=3", "did you mean 'channels'"),
        ("vqgn.model.channels=3", "did you mean 'vqgan'"),
        ("vqgan.model.compression=5", "compression"),
        ("vqgan.model.channels=many", "vqgan.model.channels = 'many'"),
        ("vqgan.codebook.kmeans=sometimes", "kmeans"),
        ("vqgan.model=3", "vqgan.model is 3"),
        ("vqgan.model.channels.deep=3", "is a value, not a section"),
        ("vqgan.model.channels", "KEY.SUBKEY=VALUE"),
        ("diffusion.sampler.name=dimm", "did you mean 'ddim'"),
        ("vqgan.loop.batch=0", "at least 1"),
        ("data.splits.train=0.7", "split fractions"),
        ("data.splits={train: .nan}", "split fractions"),
        ("data.codec=blosc", "did you mean 'blosc2'"),
        ("data.subjects=0", "subjects 0"),
        ("vqgan.model.norm_groups=0", "norm_groups 0"),
        ("vqgan.model.channels=-8", "channels -8"),
        ("vqgan.model.layers=0", "layers 0"),
        ("vqgan.discriminator.channels=10", "a multiple of 4"),
        ("vqgan.optimizer.lr=.nan", "lr nan"),
        ("vqgan.optimizer.warmup_samples=-1", "warmup_samples -1"),
        ("vqgan.codebook.kmeans_iterations=0", "kmeans_iterations 0"),
        ("vqgan.engine.tracker=tensorbord", "did you mean 'tensorboard'"),
        ("vqgan.engine.timeout_minutes=0", "timeout_minutes 0"),
        ("diffusion.model.channels=48", "a multiple of 32"),
        ("diffusion.model.attention=[7]", "levels of 0, 1, 2"),
        ("diffusion.ema.rampup=0", "rampup 0"),
        ("diffusion.sampler.name=ddim", "does not solve objective 'flow'"),
        ("sample.batch=-1", "batch -1"),
        ("sample.payload=pixels", "sample.payload"),
        ("sample={payload: codes, quantise: false}", "sample.payload=codes with sample.quantise=false"),
        ("run=[", "not YAML"),
        ("vqgan.model.channels=!!python/object/apply:os.system ['false']", "not YAML"),
    ],
)
def test_wrong_words_are_named(override: str, message: str) -> None:
    with pytest.raises(InputError) as caught:
        load("demo", [override])
    assert message in str(caught.value)


def test_unknown_presets_name_the_nearest() -> None:
    with pytest.raises(InputError, match="did you mean 'retina-224'"):
        load("retina-242")
    with pytest.raises(InputError, match="no such file"):
        load("mine.yaml")


@pytest.mark.parametrize("content", [b"- a\n- b\n", b"vqgan: null\n", b"5\n", b"run: caf\xe9\n", b"\x00"])
def test_a_file_that_is_no_configuration_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "mine.yaml").write_bytes(content)
    for overrides in ([], ["run=runs/x", "vqgan.flip=false"]):
        with pytest.raises(InputError, match=r"mine\.yaml"):
            load(str(tmp_path / "mine.yaml"), overrides)


def test_a_value_error_names_the_file_and_the_key(tmp_path: Path) -> None:
    tree = to_tree(load("demo"))
    tree["vqgan"]["optimizer"]["lr"] = -1
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(tree))
    with pytest.raises(InputError) as caught:
        load(str(path))
    assert "mine.yaml" in str(caught.value) and "vqgan.optimizer" in str(caught.value)


def test_the_command_line_prints_the_resolved_tree_and_runs_nothing(tmp_path: Path) -> None:
    words = [sys.executable, "-m", "launch", "run", "demo", "--dry-run", f"run={tmp_path / 'r'}"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert from_tree(yaml.safe_load(done.stdout)).run == str(tmp_path / "r") and not (tmp_path / "r").exists()


def test_a_wrong_key_ends_the_command_with_code_2() -> None:
    words = [sys.executable, "-m", "launch", "train", "vqgan", "demo", "vqgan.modle.channels=8"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2 and "did you mean 'model'" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("written", "read"),
    [
        *[(text, text) for text in ("1:30:00", "12:30", "-1:30", "1:30.5", "0123", "0027", "-010", "00", "2026-11-28")],
        *[("90", 90), ("0", 0), ("-1", -1), ("0.5", 0.5), ("01.5", 1.5), ("1.0e-3", 0.001), ("0x10", 16), ("true", True), ("'90'", "90")],
    ],
)
def test_no_number_is_read_as_another_than_stands_there(written, read):
    """YAML 1.1 counts what has a colon to the base of 60, and what begins with 0 to that of 8."""
    assert parse_yaml(f"key: [{written}]", "file") == {"key": [read]} and type(parse_yaml(written, "file")) is type(read)
    assert parse_yaml(yaml.safe_dump({"key": read}), "file") == {"key": read}, "what we write is read as it was"


def test_a_number_with_a_colon_is_refused_where_a_number_is_asked_for(tmp_path):
    (tmp_path / "mine.yaml").write_text("sample: {count: 1:30:00}\n")
    with pytest.raises(InputError, match="sample.count = '1:30:00'"):
        load(str(tmp_path / "mine.yaml"))
    with pytest.raises(InputError, match="sample.count = '1:30'"):
        load("demo", ["sample.count=1:30"])


@pytest.mark.parametrize(
    "words", ["presets", "run demo --dry-run", "submit --dry-run -- train vqgan demo", "runs", "status", "run demo vqgan.lopp.batch=3"]
)
def test_who_asks_for_no_tensor_does_not_wait_for_torch(words: str, tmp_path: Path) -> None:
    script = f"""
import sys
from launch.cli import app
try:
    app({words.split()!r})
except (SystemExit, ValueError):
    pass
print(*{{name.partition(".")[0] for name in sys.modules}} & {{"torch", "diffusers", "accelerate", "deepspeed"}}, file=sys.stderr)
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.stderr.splitlines()[-1] == "", done.stderr


def test_the_sampler_of_a_trained_run_may_change_until_a_set_is_begun(tmp_path: Path) -> None:
    folder = f"run={tmp_path}"
    Run(load("demo", [folder])).freeze()
    (tmp_path / "diffusion" / "checkpoints").mkdir(parents=True)
    others = [folder, "diffusion.sampler.steps=5", "diffusion.sampler.shift=3.0"]
    Run(load("demo", others)).check()
    with pytest.raises(InputError) as refused:
        Run(load("demo", [folder, "diffusion.sampler={name: auto}", "diffusion.objective.target=v"])).check()
    assert refused.value.what.endswith(": diffusion.objective.target")
    (tmp_path / "synthetic").mkdir()
    with pytest.raises(InputError) as refused:
        Run(load("demo", others)).check()
    assert refused.value.what.endswith(": diffusion.sampler.shift, diffusion.sampler.steps")


def test_a_run_of_a_version_without_settings_of_the_sampler_goes_on(tmp_path: Path) -> None:
    earlier = to_tree(load("demo", [f"run={tmp_path}"]))
    earlier["diffusion"]["sampler"] = {"name": "flow-heun", "steps": 12}
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(earlier))
    (tmp_path / "synthetic").mkdir()
    with pytest.raises(InputError, match="begun with another configuration: diffusion.sampler") as refused:
        Run(load("demo", [f"run={tmp_path}"])).check()
    preset, *overrides = shlex.split(refused.value.mend.removeprefix("to go on as it was begun: ").partition(" in place of")[0])
    Run(load(preset, overrides)).check()  # as the advice says


def test_an_override_of_a_section_that_yaml_shares_reaches_no_other(tmp_path):
    (tmp_path / "shared.yaml").write_text("vqgan: {loop: &loop {batch: 8}}\ndiffusion: {loop: *loop}\n")
    config = load(str(tmp_path / "shared.yaml"), ["vqgan.loop.batch=2"])
    assert (config.vqgan.loop.batch, config.diffusion.loop.batch) == (2, 8)
