"""Distributed k-means."""
