"""Jobs on SLURM. No torch here; knows data_shards; never ldm or launch."""
