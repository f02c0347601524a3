"""Turns words into runs: the command line, the configuration, the builders, the report."""

__version__ = "0.1.0"
