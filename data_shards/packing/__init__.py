"""Cubes into shards, and what is made of whole sets."""
