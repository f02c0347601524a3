"""Jobs on SLURM. No torch here; knows data_shards; never ldm or launch."""

from typing import TYPE_CHECKING

from data_shards.on_demand import on_demand

__all__ = [
    "JOBS",
    "JobSpec",
    "JobState",
    "Placement",
    "Submitted",
    "current",
    "is_live",
    "placement",
    "read_record",
    "run_local",
    "submit",
]

if TYPE_CHECKING:
    from slurm.executor import submit
    from slurm.fields import JOBS
    from slurm.foreground import run_local
    from slurm.jobs import JobSpec
    from slurm.queue import JobState
    from slurm.rank import Placement, placement
    from slurm.records import Submitted, read_record
    from slurm.states import current, is_live
else:
    __getattr__, __dir__ = on_demand(__name__)
