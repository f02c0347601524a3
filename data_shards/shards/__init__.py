"""What one shard is."""
