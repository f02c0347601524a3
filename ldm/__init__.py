"""Models, training, generation and evaluation. Knows data_shards; never slurm or launch."""
