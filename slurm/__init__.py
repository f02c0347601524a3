"""Jobs on SLURM. No torch here; knows data_shards; never ldm or launch."""

from pathlib import Path

JOBS = Path("runs/jobs")
"""Where job folders lie unless --jobs says otherwise; that of a job is JOBS/NAME."""
