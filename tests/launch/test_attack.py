"""`retinaforge attack` on a run, from its preset to the file and the words."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from data_shards.errors import InputError
from launch.run import read_result
from ldm.authenticity.membership import MembershipResult
from tests.commands import invoke
from tests.runs import configured


def test_a_run_is_attacked_by_its_preset(packed: Path, tmp_path: Path) -> None:
    loop = {"samples": 8, "batch": 8, "log_every": 8, "checkpoint_every": 8, "validate_samples": 0}
    tree = {**configured(loop=loop, engine={"tracker": "none"}), "run": str(tmp_path / "run"), "data": {"dataset": str(packed)}}
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(tree))
    with pytest.raises(InputError, match="no trained vqgan"):
        invoke("attack", tmp_path / "tiny.yaml")
    for verb in (["train", "vqgan"], ["encode"], ["train", "diffusion"]):
        invoke(*verb, tmp_path / "tiny.yaml")
    said = " ".join(invoke("attack", tmp_path / "tiny.yaml", "--draws", 1).split())
    result = read_result(tmp_path / "run" / "membership.json", MembershipResult)
    assert result.people == (16, 4) and result.judgement.verdict in said and "16 training people against 4 held out" in said
    assert result.judgement.leaks is not True  # of eight samples nothing is learnt by heart
    again = json.loads(invoke("attack", tmp_path / "tiny.yaml", "--draws", 1, "--json"))
    assert again["judgement"]["verdict"] == result.judgement.verdict
