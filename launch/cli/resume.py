"""retinaforge resume: a submitted job once more, as it was frozen; of a pipeline, what is missing."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from data_shards.errors import InputError
from launch.cli.options import Jobs
from launch.cli.submit import submit_once
from slurm.fields import JOBS

if TYPE_CHECKING:
    from slurm.jobs import JobSpec


def resume(
    context: typer.Context,
    name: Annotated[str, typer.Argument(help="Name of a job that has ended, or of a pipeline.")],
    nodes: Annotated[str | None, typer.Option(help="Other nodes than before: 2, or 1-4.")] = None,
    time_minutes: Annotated[int | None, typer.Option(min=1, help="Another time limit.")] = None,
    partition: Annotated[str | None, typer.Option(help="Other partition(s).")] = None,
    array: Annotated[str | None, typer.Option(help="Of an array, these indices alone; it stays the array that it is.")] = None,
    failed: Annotated[bool, typer.Option("--failed", help="Of an array, the indices that did not end well.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Also where SLURM does not know whether the job still lives.")] = False,
    jobs: Jobs = JOBS,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Submit a job again as it was frozen; it goes on from its newest verified checkpoint. Of a pipeline, what is missing."""
    from launch.submit.described import Described
    from launch.submit.frozen import read_target
    from launch.submit.graph import PIPELINE_NAME
    from launch.submit.site import as_fields
    from slurm import executor
    from slurm.offers import offers
    from slurm.records import job_folder
    from slurm.states import check_free

    if array is not None and failed:
        raise InputError(f"--array {array} and --failed", expected="one of both")
    changes = {"nodes": nodes, "time_minutes": time_minutes, "partition": partition}
    changes = as_fields({field: value for field, value in changes.items() if value is not None}, where="the command line")
    folder = job_folder(jobs, name)
    if (folder / PIPELINE_NAME).exists():
        options = [*changes, *["array"] * (array is not None), *["failed"] * failed]
        _resume_pipeline(context, name, options, jobs=jobs, as_json=as_json, force=force)
        return
    spec = replace(_frozen(name, jobs), **changes, dependency=None)  # what it waited for may be long gone
    executor.check_slurm()
    job = Described(spec, folder, target=read_target(folder))
    job.check_on(offers())
    over = check_free(folder, force=force)
    submit_once(job, over, as_json, force=force, only=_failed(folder, spec) if failed else _limited(array, spec))


def _resume_pipeline(context: typer.Context, name: str, options: list[str], *, jobs: Path, as_json: bool, force: bool) -> None:
    """Submit what is missing of a pipeline.

    Raises:
        InputError: options of a job were given.
    """
    from launch.cli.pipeline import submit_pipeline
    from launch.submit.graph import PIPELINE_NAME
    from slurm.jobs import words_on
    from slurm.records import job_folder

    folder = job_folder(jobs, name)
    if options:
        raise InputError(
            f"{', '.join(options)} for the pipeline {name!r}",
            expected="no resources: each of its jobs has its own",
            mend=f"{words_on('resume', f'{name}/STAGE', folder / 'STAGE')} …, or edit the file and retinaforge submit -- pipeline FILE",
        )
    file = str(folder / PIPELINE_NAME)
    submit_pipeline(context.find_root().command, [file], {}, name, jobs=jobs, local=False, dry_run=False, as_json=as_json, force=force)


def _frozen(name: str, jobs: Path) -> JobSpec:
    """A job as it was frozen.

    Raises:
        InputError: there is none of this name, or the packages that it runs are gone.
    """
    from slurm.jobs import SPEC_NAME, read_spec
    from slurm.records import job_folder, no_job

    path = job_folder(jobs, name) / SPEC_NAME
    if not path.exists():
        raise no_job(name, jobs)
    spec = read_spec(path)
    if spec.code and not Path(spec.code).is_dir():
        raise InputError(
            "the copy of the packages that this job runs is gone",
            where=spec.code,
            expected="what was kept there as the job was submitted",
            mend="the same retinaforge submit as before: it keeps a copy of the present ones",
        )
    return spec


def _failed(folder: Path, spec: JobSpec) -> str | None:
    """The indices of an array that did not end well; None: all of a job that is none.

    Raises:
        InputError: all of it ended well.
    """
    from slurm.arrays import spelled
    from slurm.jobs import words_on
    from slurm.records import RECORD_NAME, read_record
    from slurm.states import current

    record = read_record(folder / RECORD_NAME)
    failed = [state for state in current([record])[record.name] if state.state != "COMPLETED"]
    if not failed:
        raise InputError(f"nothing of {spec.name!r} failed", where=folder, mend=words_on("status", spec.name, folder))
    return _limited(spelled(int(index) for state in failed for index in state.indices), spec) if spec.array else None


def _limited(array: str | None, spec: JobSpec) -> str | None:
    """Indices of an array, of which no more run at once than of the whole, unless they say so themselves."""
    if not array or spec.array is None or "%" in array:  # an empty one is refused as it is
        return array
    return array + "".join(spec.array.partition("%")[1:])
