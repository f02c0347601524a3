"""The sbatch script of a job."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

from slurm.arrays import ARRAY, FIRST, Part
from slurm.attempts import ERRORS
from slurm.fields import check_path, masked
from slurm.jobs import SPEC_NAME, JobSpec
from slurm.preempt import ATTEMPT
from slurm.queue import TOKEN_MARK

ALWAYS_EXPORTED = ("HOME", "LANG", "LC_ALL", "LOGNAME", "PATH", "USER")


def sbatch_text(spec: JobSpec, run_folder: Path, part: Part | None = None, token: str = "") -> str:
    """The whole sbatch script: a pure function of the job and its folder (golden files: tests/golden/slurm).

    Args:
        part: of the job's array, where it goes as several.
        token: of this submission; SLURM is told it as the job's comment, behind what the site wants there.

    Raises:
        InputError: a run folder whose path SLURM would read otherwise than we do.
    """
    check_path("run_folder", str(run_folder))
    job_json = str(run_folder / SPEC_NAME)
    task = shlex.join([*spec.launcher_words, spec.python, "-u", "-m", "slurm.task", job_json])
    return SCRIPT.format(
        command=json.dumps([masked(word) for word in spec.command]),
        options="\n".join(f"#SBATCH {shlex.quote(flag)}" for flag in _sbatch_options(spec, run_folder, part, token)),
        setup="".join(f"{line}\n" for line in (*spec.setup, *after_setup(spec, run_folder))),
        code=f"export PYTHONPATH={shlex.quote(spec.code)}${{PYTHONPATH:+:$PYTHONPATH}}\n" if spec.code else "",
        umask=f"umask {spec.umask}\n" if spec.umask else "",
        first=f"export {FIRST}={part.first} {ARRAY}={shlex.quote(part.whole)}\n" if part else "",
        python=shlex.quote(spec.python),
        attempt=f"{ATTEMPT}={f'{token}.' if token else ''}",
        note=ERRORS,
        job=shlex.quote(job_json),
        tasks="" if spec.most_nodes is None else f' --ntasks="$((SLURM_JOB_NUM_NODES * {spec.tasks_per_node}))"',
        srun=f"{shlex.join(_srun_options(spec, run_folder))} \\\n  {task}",
    )


def _logs(spec: JobSpec, run_folder: Path) -> str:
    """How the names of all its logs begin; % begins a pattern in them."""
    return f"{run_folder}".replace("%", "%%") + ("/%A_%a" if spec.array else "/%j")


def _sbatch_options(spec: JobSpec, run_folder: Path, part: Part | None, token: str) -> list[str]:
    options = {
        "job-name": spec.name,
        "chdir": run_folder,  # not the command's: a folder named slurm or ldm there would be imported in place of ours
        **_size(spec),
        "gpus-per-node": f"{spec.gpu_type}:{spec.node_gpus}" if spec.gpu_type else spec.node_gpus or None,
        "mem": spec.memory,
        "time": spec.time_minutes,
        "partition": spec.partition,
        "account": spec.account,
        "qos": spec.qos,
        "constraint": spec.constraint,
        "array": part.array if part else spec.array,
        "dependency": ",".join(filter(None, (spec.dependency, part and part.after))) or None,
        "reservation": spec.reservation,
        "requeue" if spec.requeue else "no-requeue": True,
        "mail-user": spec.mail_user,
        "mail-type": spec.mail_type,
        "open-mode": "append",
        "output": f"{_logs(spec, run_folder)}_batch.out",
        "signal": f"USR1@{spec.signal_seconds}",
        "export": ",".join(sorted({*ALWAYS_EXPORTED, *spec.exports})),
    }
    comments = [line.removeprefix("--comment=") for line in spec.extra if line.startswith("--comment=")]
    options["comment"] = " ".join([*comments[-1:], *([TOKEN_MARK + token] if token else [])]) or None
    flags = [f"--{key}" if value is True else f"--{key}={value}" for key, value in options.items() if value is not None]
    return flags + [line for line in spec.extra if not line.startswith("--comment=")]


def _srun_options(spec: JobSpec, run_folder: Path) -> list[str]:
    options = ["--unbuffered", "--kill-on-bad-exit=1", "--export=ALL", f"--cpus-per-task={spec.cpus_per_task}"]
    if spec.most_nodes is not None:
        options.append(f"--ntasks-per-node={spec.tasks_per_node}")
    return [*options, "--open-mode=append", f"--output={_logs(spec, run_folder)}_%t_log.out", *spec.srun_options]


def after_setup(spec: JobSpec, run_folder: Path) -> list[str]:
    """What takes back of a site's lines of bash that which would lose a restart, or bring other code in place of ours."""
    return ["set +e", f"cd {shlex.quote(str(run_folder))} || exit"] if spec.setup else []


def _size(spec: JobSpec) -> dict[str, Any]:
    """Nodes, tasks and cores, as options of sbatch.

    Told of tasks, SLURM takes no more nodes than the fewest need, whatever is free (seen with 22.05). A job for any number of nodes
    therefore asks for the cores of a node as for one task's, and tells srun how many tasks that makes.
    """
    if spec.most_nodes is None:
        return {"nodes": spec.nodes, "ntasks-per-node": spec.tasks_per_node, "cpus-per-task": spec.cpus_per_task}
    return {"nodes": f"{spec.nodes}-{spec.most_nodes}", "cpus-per-task": spec.tasks_per_node * spec.cpus_per_task}


SCRIPT = """\
#!/bin/bash
# {command}
{options}

told=
trap 'told=--told' TERM  # SLURM asks the script to end: it waits for its tasks, which commit, and notes why
trap '' USR1 USR2  # a wish of a person's, scancel -s USR1 --full: for the tasks, and no end of this script
{setup}set -u
{code}{umask}{first}attempts() {{ {python} -m slurm.attempts "$1" {job} "${{@:2}}"; }}
export {attempt}"$SLURM_JOB_ID.${{SLURM_RESTART_COUNT:-0}}"
attempts begin || exit
MASTER_ADDR=127.0.0.1
if [ "$SLURM_JOB_NUM_NODES" -gt 1 ]; then
  read -r MASTER_ADDR < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
  # a site may name its nodes otherwise than the network does
  if ! getent hosts "$MASTER_ADDR" >/dev/null; then
    MASTER_ADDR=$(scontrol --oneliner show node "$MASTER_ADDR" | sed -n 's/.* NodeAddr=\\([^ ]*\\).*/\\1/p')
  fi
fi
export MASTER_ADDR  # the port is told by rank 0, which sees what is free there

# --export=ALL hands on the variables of this script (the list above already limits what came from outside);
# --cpus-per-task is repeated because srun of SLURM 22.05 and later does not take it from the job
errors=$(mktemp) || errors=/dev/null  # of this node: the job's folder may be on a full disk
trap : USR1 USR2  # srun hands them on
srun{tasks} {srun} 2>"$errors"
status=$?
trap '' TERM USR1 USR2  # what is noted, and the request for another attempt, take a moment
{note}="$errors" attempts end "$status" $told
"""
