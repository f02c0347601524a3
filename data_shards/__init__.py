"""Cubes on disk: their types, formats, shards, index, manifest and stream. The ground floor: imports none of the others."""
