"""Latents, samples and sets."""
