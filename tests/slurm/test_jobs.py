"""A job as data, and the script made of it."""

from __future__ import annotations

import dataclasses
import shlex
import subprocess
from pathlib import Path

import pytest

from data_shards.errors import InputError
from slurm.arrays import array_indices
from slurm.executor import submit
from slurm.foreground import run_local
from slurm.jobs import JobSpec, freeze, read_spec, spec_from, spec_json, words_on
from slurm.queue import FORMAT, JobState, read_squeue
from slurm.rank import Placement
from slurm.records import job_folder
from slurm.script import sbatch_text
from slurm.task import task_environ, task_words

GOLDEN = Path(__file__).parents[1] / "golden" / "slurm"
RUN = Path("/scratch/runs/jobs/vqgan")
PLAIN = JobSpec(name="vqgan", command=("retinaforge", "train", "vqgan", "runs/vqgan"), folder="/scratch", python="/opt/venv/bin/python")
EVERYTHING = dataclasses.replace(
    PLAIN,
    name='it\'s "96²" at $(hostname) `id` # not a comment',
    command=("retinaforge", "sample", "runs/a b", "--task", "{array_task}/10", "; rm -rf $HOME", "line\nbreak\n#SBATCH --nodes=9"),
    folder="/scratch/a folder's name",
    nodes=2,
    most_nodes=4,
    tasks_per_node=4,
    cpus_per_task=8,
    gpus_per_task=1,
    memory="256G",
    time_minutes=720,
    partition="gpu,gpu-long",
    account="retina",
    qos="high",
    constraint="a100|h100",
    array="0-9%4",
    dependency="afterok:123:124",
    reservation="retina-week",
    extra=("--gres-flags=enforce-binding", "--comment=a 'b' $(id)"),
    requeue=False,
    exports=("NCCL_SOCKET_IFNAME", "HF_HOME"),
    umask="0027",
)
SITE = dataclasses.replace(
    PLAIN,
    gpu_type="a100",
    gpus_per_node=4,
    time_minutes=2 * 1440,
    setup=("module load cuda/12.4", "source /opt/conda/bin/activate 'my env'", ""),
    srun_options=("--container-image=a.sqsh", "--mpi=pmix"),
    launcher="apptainer exec --nv 'my image.sif'",
    mail_user="a.b@d.org",
    mail_type="END,FAIL",
    code="/scratch/code/5e",
)
TOKEN = "5e" * 16


SENT_ELSEWHERE = ("--parsable", "--parsa", "--cluster=b", "--clusters=b", "--cluster-constraint=x", "--test-only", "--test", "--qui")
SENT_ELSEWHERE += ("--wrap=id", "--wra=id", "--help", "--usa", "--vers", "--tasks-per-node=9", "--get-user-env", "--jobid=7", "--array=1")
"""Options after which sbatch would answer otherwise, or send the job elsewhere, also by the abbreviations that it takes."""


@pytest.mark.parametrize(
    ("name", "spec", "folder"),
    [("plain", PLAIN, RUN), ("everything", EVERYTHING, RUN.with_name("100% of it's $HOME")), ("site", SITE, RUN)],
)
def test_the_script_is_the_golden_one(name, spec, folder):
    golden, token = GOLDEN / f"{name}.sbatch", TOKEN if spec is EVERYTHING else ""
    assert sbatch_text(spec, folder, token=token) == golden.read_text(), f"if the change is meant, write the new text to {golden}"


@pytest.mark.parametrize("spec", [PLAIN, EVERYTHING, SITE])
def test_the_script_is_bash_and_none_of_it_comes_from_the_command(spec):
    text = sbatch_text(spec, RUN)
    assert subprocess.run(["bash", "-n"], input=text, text=True, capture_output=True, check=False).returncode == 0
    code = [line for line in text.splitlines() if line and not line.startswith("#")]
    assert not any(word in line for line in code for word in ("rm -rf", "$(hostname)", "nodes=9"))
    assert sum(line.startswith("#SBATCH --nodes") for line in text.splitlines()) == 1, "a word with a line break adds no option"


def test_options_survive_quoting():
    options = [shlex.split(line)[1] for line in sbatch_text(EVERYTHING, RUN).splitlines() if line.startswith("#SBATCH")]
    assert f"--job-name={EVERYTHING.name}" in options and f"--chdir={RUN}" in options
    assert "--gpus-per-node=4" in options, "all GPUs of a node for all its tasks; the local rank chooses"


TELL_A_SECRET = [
    "env 'HF_TOKEN=hunter2'",
    'env "HF_TOKEN=hunter2" x',
    "bash -c 'export HF_TOKEN=hunter2'",
    "export 'HF_TOKEN=hunter2'",
    "export HF_TOKEN='hunter2'",
    'export HF_TOKEN="hunter2"',
    "true;HF_TOKEN=hunter2 x",
    "(export HF_TOKEN=hunter2)",
    "curl -H 'Authorization: Bearer hunter2' x",
    'curl -H "authorization:hunter2" x',
    "curl --header='X-Api-Key: hunter2' x",
    "curl -u ann:hunter2 x",
    "curl --user 'ann:hunter2' x",
    "cmd --password hunter2",
    "cmd --password=hunter2",
    "cmd '--password' 'hunter2'",
    "cmd --hf-token 'hunter2'",
    "wget 'https://ann:hunter2@host/x'",
]
ELSEWHERE = [
    'export HF_TOKEN="$(cat ~/.token)"',
    "export HF_TOKEN=`cat token`",
    'export HF_TOKEN="$MY_TOKEN"',
    'curl -H "Authorization: Bearer $HF_TOKEN" x',
    "docker login --password-stdin registry",
    "cmd --password-file /run/x --token-path y",
    "cmd --password $PASSWORD --token",
    "apptainer exec docker://registry/token:latest",
    "podman run --user 1000:1000 x",
    "module load cuda:12.4 key/1",
]
"""What a shell fetches from where it is kept, and what only sounds like a secret."""
VALID = [
    *({"setup": (line,)} for line in ELSEWHERE),
    {"account": "a@b"},
    {"memory": "0"},
    {"memory": "16g"},
    {"dependency": "after:12+5"},
    {"dependency": "afterok:12:13_4?singleton"},
    {"dependency": "aftercorr:12_*,afterburstbuffer:3"},
    {"constraint": "[rack1*2&rack2*4]"},
    {"array": "0-6:2,9%2"},
    {"exports": ("TOKENIZERS_PARALLELISM", "MAX_TOKENS", "MAX_TOKEN_LENGTH", "HF_TOKEN_PATH", "GOOGLE_APPLICATION_CREDENTIALS", "PWD")},
    {"setup": ("source /etc/profile.d/modules.sh", "export TOKENIZERS_PARALLELISM=false", "export HF_TOKEN=$(cat ~/.token)", "")},
    {"srun_options": ("--kill-on-bad-exit=0", "--container-image=a.sqsh", "--mpi=pmix"), "launcher": "apptainer exec --nv 'my image.sif'"},
    {"mail_user": "a.b+c@d.org", "mail_type": "END,FAIL", "gpu_type": "a100", "gpus_per_node": 4},
    {"extra": ("--comment=" + "x" * 147,), "setup": (r"echo \\\\", "# SBATCH is no option")},
    {"extra": ("--wait-all-nodes=1", "--hold", "--mem-per-cpu=2G", "--time-min=60", "--no-kill")},
]


@pytest.mark.parametrize("change", VALID, ids=str)
def test_what_sites_have_is_accepted(change):
    spec = dataclasses.replace(PLAIN, **change)
    assert spec_from(spec_json(spec)) == spec


@pytest.mark.parametrize("spec", [PLAIN, EVERYTHING, SITE])
def test_json_round_trip(spec):
    assert spec_from(spec_json(spec)) == spec


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"name": "two\nlines"}, "printable"),
        ({"name": "back\\slash"}, "backslash"),
        ({"name": "  "}, "printable"),
        ({"command": ()}, "without a command"),
        ({"folder": "runs"}, "absolute"),
        ({"nodes": 0}, "nodes=0"),
        ({"time_minutes": 2}, "longer than the warning"),
        ({"memory": "lots"}, "memory='lots'"),
        ({"partition": "a b"}, "partition"),
        ({"array": "1-"}, "array"),
        ({"nodes": 4, "most_nodes": 2}, "nodes=4-2"),
        ({"reservation": "a b"}, "reservation"),
        ({"extra": ("--nodes=9",)}, "does not set itself"),
        ({"extra": ("-N9",)}, "one long option"),
        ({"srun_options": ("--exp=NONE",)}, "srun_options(.|\n)*does not set itself"),
        ({"setup": ("export WANDB_API_KEY=abc",)}, "setup sets WANDB_API_KEY(.|\n)*--secrets"),
        ({"setup": ("a\nb",)}, "a line of bash each"),
        ({"setup": ("source x \\",)}, "whole lines"),
        ({"setup": ("#SBATCH --export=ALL",)}, "a line of bash(.|\n)*--extra"),
        ({"setup": ("export https_proxy=http://ann:hunter2@proxy:3128",)}, r"holds a password: export https_proxy=http://ann:\*\*\*@"),
        ({"launcher": "apptainer exec --env WANDB_API_KEY=abc x.sif"}, "launcher sets WANDB_API_KEY"),
        ({"srun_options": ("--container-env=HF_TOKEN=abc",)}, "srun_options sets HF_TOKEN"),
        *(({"setup": (line,)}, "setup (sets|holds a password)(.|\n)*--secrets FILE") for line in TELL_A_SECRET),
        *(({"launcher": line}, "launcher (sets|holds a password)(.|\n)*--secrets FILE") for line in TELL_A_SECRET),
        ({"launcher": "env HF_'TO'KEN=hunter2"}, "launcher sets HF_TOKEN"),
        ({"extra": ("--comment=" + "x" * 148,)}, "at most 147 bytes"),
        ({"extra": ("--comm=mine",)}, "in full"),
        ({"launcher": "env 'x"}, "launcher=(.|\n)*No closing quotation"),
        ({"code": "/a:b/code"}, "no colon"),
        ({"mail_type": "END;id"}, "END,FAIL"),
        *(({"extra": (option,)}, "does not set itself") for option in SENT_ELSEWHERE),
        ({"array": "5-1"}, "lowest index first"),
        ({"array": "0-9:0"}, "step from 1 on"),
        ({"array": "1-99999999999"}, "at most 4,000,000"),
        ({"dependency": "after:12+x"}, "after:12"),
        ({"exports": ("SLURM_CPU_BIND",)}, "no variable of SLURM's"),
        ({"exports": ("PGPASSWORD",)}, "no secrets"),
        ({"exports": ("AWS_SECRET_ACCESS_KEY",)}, "no secrets"),
        ({"exports": ("AZURE_STORAGE_SAS_TOKEN",)}, "no secrets"),
        ({"extra": ("--comment=a\n#SBATCH --nodes=9",)}, "printable"),
        ({"dependency": "afterok:123; id"}, "dependency"),
        ({"exports": ("A=B",)}, "the name of a variable"),
        ({"exports": ("WANDB_API_KEY",)}, "no secrets"),
        ({"exports": ("HF_TOKEN",)}, "no secrets"),
    ],
)
def test_what_cannot_be_a_job_is_refused(change, words):
    with pytest.raises(InputError, match=words) as caught:
        dataclasses.replace(PLAIN, **change)
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"{", "not a job"),
        (b'{"name": "x", "node": 2}', "unknown field 'node'(.|\n)*did you mean 'nodes'"),
        (spec_json(PLAIN).replace(b'"nodes": 1', b'"nodes": "1"'), "nodes: "),
        (spec_json(PLAIN).replace(b'"nodes": 1', b'"nodes": -1'), "nodes=-1"),
        (b'{"name": "x"}', "command: "),
    ],
)
def test_a_bad_file_is_named_by_its_field(content, words):
    with pytest.raises(InputError, match=words):
        spec_from(content)


def test_a_run_folder_is_private_and_its_job_frozen(tmp_path):
    folder = tmp_path / "runs" / "a"
    path = freeze(PLAIN, folder)
    assert folder.stat().st_mode & 0o777 == 0o700
    assert read_spec(path) == PLAIN and freeze(PLAIN, folder) == path, "the same job may be submitted again"
    longer = dataclasses.replace(PLAIN, time_minutes=600, nodes=4)
    freeze(longer, folder)
    assert read_spec(path) == longer, "also with other resources"
    with pytest.raises(InputError, match="name is in use"):
        freeze(EVERYTHING, folder)


def test_a_task_hands_on_its_placement_and_refuses_another_world():
    spec = dataclasses.replace(PLAIN, nodes=2, cpus_per_task=3)
    assert task_environ(spec, Placement(rank=1, world=2, source="slurm"))["RANK"] == "1"
    assert task_environ(spec, Placement(rank=1, world=2, source="slurm"))["OMP_NUM_THREADS"] == "3"
    assert "RANK" not in task_environ(PLAIN, Placement()), "one process is no distributed run"
    any_number = dataclasses.replace(PLAIN, nodes=1, most_nodes=3, tasks_per_node=2)
    assert list(any_number.worlds) == [2, 4, 6]
    assert task_environ(any_number, Placement(rank=1, world=4, source="slurm"))["WORLD_SIZE"] == "4"
    with pytest.raises(InputError, match=r"1-3 node"):
        task_environ(any_number, Placement(rank=1, world=3, source="slurm"))
    with pytest.raises(InputError, match=r"single started 1 process\(es\)(.|\n)*2 node"):
        task_environ(spec, Placement())
    assert task_words(EVERYTHING, "7")[4] == "7/10"
    with pytest.raises(InputError, match="--array"):
        task_words(EVERYTHING, None)


# in one write: tasks that print at the same moment share the file
SHOW = """
import os, sys
sys.stdout.write(" ".join([*(os.environ[n] for n in ("RANK", "WORLD_SIZE", "OMP_NUM_THREADS")), str(sys.argv[1:])]) + "\\n")
"""


def local(tmp_path: Path, **fields) -> tuple[JobSpec, Path]:
    return JobSpec(name="t", folder=str(tmp_path), **fields), tmp_path / "job"


def test_a_local_run_starts_every_task_with_its_rank(tmp_path, capfd):
    spec, folder = local(tmp_path, command=("python", "-c", SHOW, "a b", "$HOME"), nodes=2, cpus_per_task=2)
    assert run_local(spec, folder) == 0
    assert sorted(capfd.readouterr().out.splitlines()) == ["0 2 2 ['a b', '$HOME']", "1 2 2 ['a b', '$HOME']"]


def test_a_local_run_within_an_array_task_is_no_array(tmp_path, capfd, monkeypatch):
    for name, value in {"SLURM_ARRAY_TASK_ID": "3", "SLURM_RESTART_COUNT": "2", "SLURM_CONF": "/etc/slurm.conf"}.items():
        monkeypatch.setenv(name, value)
    spec, folder = local(tmp_path, command=("python", "-c", "import os; print(sorted(n for n in os.environ if n.startswith('SLURM_')))"))
    assert run_local(spec, folder) == 0 and "['SLURM_CONF']" in capfd.readouterr().out
    spec, _ = local(tmp_path, command=("python", "-c", "0", "{array_task}"))
    assert run_local(spec, tmp_path / "asks for an index") == 2


def test_what_a_site_sets_up_leaves_the_script_and_its_code_as_they_are(tmp_path, capfd):
    """Strict bash would end the script before it asks for a restart; a checkout that was entered would be imported in place of ours."""
    (tmp_path / "checkout" / "slurm").mkdir(parents=True)
    (tmp_path / "checkout" / "slurm" / "__init__.py").write_text("raise SystemExit('another slurm')\n")
    setup = ("set -euo pipefail", f"cd '{tmp_path}/checkout'", "export SITE=set")
    spec, folder = local(tmp_path, command=("python", "-c", "import os; print(os.environ['SITE'])"), setup=setup)
    assert run_local(spec, folder) == 0 and capfd.readouterr().out == "set\n"
    script = sbatch_text(spec, folder).replace("attempts begin", "pwd; false; attempts begin")
    begun = script.partition("MASTER_ADDR=")[0] + "exit 7"
    said = subprocess.run(
        ["bash", "-c", begun], env={"SLURM_JOB_ID": "7", "PATH": "/usr/bin:/bin"}, cwd="/", capture_output=True, text=True, check=False
    )
    assert said.stdout.startswith(f"{folder}\n") and "another slurm" not in said.stderr
    assert "retinaforge: attempt 0" in said.stdout and said.returncode == 7, "what fails after the site's lines ends nothing"


@pytest.mark.parametrize("name", ['it\'s "96"/vqgan', "plain"])
def test_a_command_in_a_message_is_as_a_shell_reads_it_from_anywhere(tmp_path, monkeypatch, name):
    folder = job_folder(tmp_path / "my jobs", name)
    assert shlex.split(words_on("status", name, folder)) == ["retinaforge", "status", name, "--jobs", str(tmp_path / "my jobs")]
    monkeypatch.chdir(tmp_path)
    assert shlex.split(words_on("cancel", name, job_folder(Path("runs/jobs"), name))) == ["retinaforge", "cancel", name]


def test_a_failed_rank_ends_the_others_and_its_code_is_the_job_s(tmp_path):
    code = "import os, sys, time; sys.exit(3) if os.environ['RANK'] == '1' else time.sleep(60)"
    spec, folder = local(tmp_path, command=("python", "-c", code), tasks_per_node=2)
    assert run_local(spec, folder) == 3


def test_a_local_array_runs_each_index(tmp_path, capfd):
    spec, folder = local(tmp_path, command=("python", "-c", "import sys; print(sys.argv[1])", "{array_task}/3"), array="0-2%2")
    assert run_local(spec, folder) == 0
    assert capfd.readouterr().out.split() == ["0/3", "1/3", "2/3"]
    assert array_indices("0-6:2,9%2") == [0, 2, 4, 6, 9]


def test_what_a_job_writes_is_as_its_umask_says(tmp_path):
    spec, folder = local(tmp_path, command=("python", "-c", "open('made', 'x')"), umask="0027")
    assert run_local(spec, folder) == 0
    assert (tmp_path / "made").stat().st_mode & 0o777 == 0o640 and folder.stat().st_mode & 0o777 == 0o700


def test_a_command_that_is_not_there_is_named(tmp_path, capfd):
    spec, folder = local(tmp_path, command=("no-such-program",))
    assert run_local(spec, folder) == 2
    assert "cannot start 'no-such-program'" in capfd.readouterr().err


def test_without_slurm_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(InputError, match="no SLURM here(.|\n)*--local"):
        submit(PLAIN, tmp_path / "job")
    assert not (tmp_path / "job").exists()


def test_squeue_is_read_by_position_and_absence_is_not_an_end():
    def row(*fields: str) -> str:
        return "".join(field.ljust(width) for field, (_, width) in zip(fields, FORMAT, strict=True))

    text = "\n".join(
        [
            row("12", "RUNNING", "1:02", "3", "retinaforge:ab12", "n1", "a | b  c", "N/A"),
            row("13", "COMPLETED", "0:10", "0", "(null)", "n2", "s", "0"),
            row("13", "PENDING", "0:00", "0", "site's own", "(Resources)", "s", "1-5,9%2"),
            row("99", "RUNNING", "9", "0", "", "n3", "not ours", "N/A"),
        ]
    )
    found = read_squeue(text, ["12", "13", "14"])
    known = {"name": "a | b  c", "state": "RUNNING", "elapsed": "1:02", "restarts": 3, "why": "n1", "comment": "retinaforge:ab12"}
    assert found["12"] == [JobState(job_id="12", **known)] and found["12"][0].token == "ab12"
    assert [state.job_id for state in found["13"]] == ["13_0", "13_1-5,9"]
    assert [state.state for state in found["14"]] == ["UNKNOWN"] and "99" not in found
