"""The engine, the one loop, checkpoints, and one file for each trainer."""
