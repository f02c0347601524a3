"""What nobody but its user may see, and what nobody but its user may say: credentials, another's repository, another's site.yaml."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest
import typer
import yaml

from data_shards.errors import InputError, RetinaforgeError, without_credentials
from data_shards.stores.retry import Transient, retrying
from launch import provenance
from launch.cli import app
from launch.credentials import CREDENTIALS
from launch.run import Run
from launch.submit.described import described
from launch.submit.site import OF_THE_USER
from launch.tree import load, to_public_yaml
from slurm.jobs import freeze
from tests.commands import invoke

URL = "https://ann:hunter2@store.example/set?X-Amz-Signature=c0ffee&versionId=3"
PUBLIC = "https://ann:***@store.example/set?X-Amz-Signature=***&versionId=3"


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))


@pytest.mark.parametrize(
    ("text", "public"),
    [
        (URL, PUBLIC),
        ("data.dataset=https://u:p@ss:word@h/x", "data.dataset=https://u:***@h/x"),
        ("https://u:p/ss@h/x", "https://u:***@h/x"),
        ("https://ghp_token@h/x", "https://***@h/x"),
        ("abfs://container@account.dfs.core.windows.net/x", "abfs://container@account.dfs.core.windows.net/x"),
        ("https://h/x?sv=1&sig=a%2Bb=#f", "https://h/x?sv=1&sig=***#f"),
        ("{'https://h/x?token=abc': 0.5, 's3://K:S@b/x': 1}", "{'https://h/x?token=***': 0.5, 's3://K:***@b/x': 1}"),
        ("https://h:8080/a@b?page=2, me@here", "https://h:8080/a@b?page=2, me@here"),
    ],
)
def test_credentials_of_urls_are_starred_and_nothing_else_is(text, public):
    assert without_credentials(text) == public
    assert public in str(InputError("no answer", where=text, mend=text)) and public == InputError(text).what


def test_a_run_keeps_its_credentials_to_itself_and_goes_on_with_them(tmp_path, caplog):
    def refused() -> None:
        raise Transient("no answer")

    other = URL.replace("set", "other")
    config = load("demo", [f"data.dataset={URL}", f"vqgan.mix={{'{other}': 0.5}}", "run=r"])
    Run(config).freeze()
    text = (tmp_path / "r" / "run.yaml").read_text()
    assert PUBLIC in text and "hunter2" not in text and "c0ffee" not in text
    assert (tmp_path / "r" / CREDENTIALS).stat().st_mode & 0o777 == 0o600 == (tmp_path / "r" / "environment.json").stat().st_mode & 0o777
    assert load("r/run.yaml") == config, "the frozen run is the run"
    (tmp_path / "r" / "vqgan" / "checkpoints").mkdir(parents=True)
    (tmp_path / "r" / "data").mkdir()
    Run(load("r/run.yaml", [f"data.dataset={URL.replace('c0ffee', 'renewed')}"])).check()
    with pytest.raises(RetinaforgeError), caplog.at_level("WARNING"):
        retrying(refused, where=URL, pauses_s=(0.0,))
    assert PUBLIC in caplog.text and "hunter2" not in caplog.text
    assert "hunter2" not in to_public_yaml(config) + invoke("run", "r/run.yaml", "--dry-run")
    (tmp_path / "r" / CREDENTIALS).unlink()
    with pytest.raises(InputError, match="what the stars stand for(.|\n)*data.dataset=URL"):
        load("r/run.yaml")
    assert load("r/run.yaml", [f"data.dataset={URL}", "vqgan.mix={}"]).data.dataset == URL, "the advice works"


def test_no_word_of_a_job_that_others_see_holds_a_credential(tmp_path):
    for words in (("run", "demo", f"data.dataset={URL}"), ("data", "ls", URL)):
        for how in ((), ("--json",)):
            said = invoke("submit", "--dry-run", *how, "--", *words)
            assert "hunter2" not in said and "c0ffee" not in said and "***@store.example" in said
    job = described(typer.main.get_command(app), ["run", "demo", f"data.dataset={URL}"], {}, None, tmp_path / "jobs")
    job.freeze()
    freeze(job.spec, job.folder)
    assert load(str(job.folder / "config.yaml")).data.dataset == URL
    kept = ("job.json", "config.yaml", "environment.json", f"{Path(job.spec.code).name}/{provenance.KEPT}")
    assert {name: (job.folder / name).stat().st_mode & 0o777 for name in kept} == dict.fromkeys(kept, 0o600)


def repository(folder: Path, *tracked: str) -> None:
    git = ["git", "-c", "user.name=x", "-c", "user.email=x@x", "-c", "init.defaultBranch=main"]
    for words in (["init", "-q"], ["add", "-f", *tracked], ["commit", "-qm", "x"]):
        subprocess.run([*git, *words], cwd=folder, check=True)


def test_only_our_own_repository_is_recorded(tmp_path, monkeypatch):
    """The packages lie in an environment within somebody's repository, or in a checkout of ours, with more beside it."""
    (tmp_path / "launch").mkdir()
    (tmp_path / "launch" / "provenance.py").write_text("a = 1\n")
    (tmp_path / "thesis.tex").write_text("draft\n")
    monkeypatch.setattr(provenance, "ROOT", tmp_path)
    repository(tmp_path, "thesis.tex")
    (tmp_path / "thesis.tex").write_text("secret\n")
    assert provenance.commit() == {"commit": "", "diff": ""}
    repository(tmp_path, "launch/provenance.py")
    (tmp_path / "launch" / "provenance.py").write_text("a = 2\n")
    found = provenance.commit()
    assert len(found["commit"]) == 40 and "+a = 2" in found["diff"] and "secret" not in found["diff"]
    (tmp_path / "launch" / "provenance.py").write_text("a = 3\n" * 10**6)
    assert len(provenance.commit()["diff"]) < 2 * provenance.LONGEST_DIFF


@pytest.mark.parametrize("key", sorted(OF_THE_USER & {"python", "secrets"}))
def test_a_folder_s_site_file_names_no_program_and_no_secret(tmp_path, key):
    (tmp_path / "site.yaml").write_text(f"{key}: /tmp/x\n")
    with pytest.raises(InputError, match=f"'{key}' in the site.yaml of a folder(.|\n)*config/retinaforge/site.yaml"):
        invoke("submit", "--dry-run", "--", "presets")


@pytest.mark.parametrize(("key", "option"), [("extra", "--container=/tmp/x"), ("srun_options", "--container-mounts=/tmp/x:/opt")])
def test_a_folder_s_site_file_brings_no_program_by_an_option_either(tmp_path, key, option):
    (tmp_path / "site.yaml").write_text(f"{key}: ['{option}']\n")
    with pytest.raises(InputError, match=f"'{key}' in the site.yaml of a folder"):
        invoke("submit", "--dry-run", "--", "presets")


@pytest.mark.parametrize(
    ("name", "members", "mode", "taken"),
    [
        ("ann", [], 0o664, True),
        ("ann", ["ann"], 0o664, True),
        ("ann", ["bob"], 0o664, False),
        ("lab", [], 0o664, False),
        ("ann", [], 0o666, False),
    ],
)
def test_a_group_of_its_owner_alone_may_write_a_site_file(tmp_path, monkeypatch, name, members, mode, taken):
    """Where each user has a group of the same name, the umask is 002."""
    (tmp_path / "site.yaml").write_text("partition: mine\n")
    (tmp_path / "site.yaml").chmod(mode)
    gid = (tmp_path / "site.yaml").stat().st_gid
    monkeypatch.setattr("launch.submit.site.pwd.getpwuid", lambda _: SimpleNamespace(pw_name="ann", pw_gid=gid))
    monkeypatch.setattr("launch.submit.site.grp.getgrgid", lambda _: SimpleNamespace(gr_name=name, gr_gid=gid, gr_mem=members))
    if taken:
        assert "partition=mine" in invoke("submit", "--dry-run", "--", "presets")
        return
    with pytest.raises(InputError, match="written by others"):
        invoke("submit", "--dry-run", "--", "presets")


def test_a_site_file_that_others_may_write_decides_nothing(tmp_path, monkeypatch):
    (tmp_path / "site.yaml").write_text("partition: theirs\n")
    (tmp_path / "site.yaml").chmod(0o664)
    several = SimpleNamespace(gr_name="root", gr_gid=(tmp_path / "site.yaml").stat().st_gid, gr_mem=["ann", "bob"])
    monkeypatch.setattr("launch.submit.site.grp.getgrgid", lambda _: several)
    for words in (("submit", "--dry-run", "--", "presets"), ("submit", "--local", "--", "presets")):
        with pytest.raises(InputError, match="written by others(.|\n)*chmod go-w"):
            invoke(*words)
    (tmp_path / "site.yaml").chmod(0o644)
    assert "partition=theirs" in invoke("submit", "--dry-run", "--", "presets")
    if os.geteuid() == 0:
        os.chown(tmp_path / "site.yaml", 12345, 12345)
        with pytest.raises(InputError, match="another user"):
            invoke("submit", "--dry-run", "--", "presets")


@pytest.mark.parametrize("made", [os.mkfifo, os.mkdir])
def test_what_is_no_file_is_no_site_file_and_keeps_nobody_waiting(tmp_path, made):
    made(tmp_path / "site.yaml")
    with pytest.raises(InputError, match="this is no file|cannot be read"):
        invoke("submit", "--dry-run", "--", "presets")


def test_a_dry_run_says_where_each_value_comes_from(tmp_path):
    home = tmp_path / "config" / "retinaforge" / "site.yaml"
    home.parent.mkdir(parents=True)
    home.write_text(yaml.safe_dump({"python": "/opt/python", "account": "retina", "verbs": {"run": {"qos": "low"}}, "exports": ["A"]}))
    (tmp_path / "site.yaml").write_text("partition: gpu\n")
    words = ("submit", "--time-minutes", "30", "--export", "B", "--dry-run", "--", "run", "demo")
    said = invoke(*words)
    assert f'# python: "/opt/python"  says {home}\n' in said and f'# partition: "gpu"  says {tmp_path}/site.yaml\n' in said
    sources = json.loads(invoke(*words[:-3], "--json", *words[-3:]))["sources"]
    assert sources["qos"] == f"{home}: verbs: run" and sources["time_minutes"] == "the command line"
    assert sources["exports"].startswith(f"{home}; the command line")
