"""Turns words into runs: the command line, the configuration, the builders, the report."""

from typing import TYPE_CHECKING

from data_shards.on_demand import on_demand

__version__ = "0.1.0"

__all__ = ["Config", "Run", "load", "preset_names"]

if TYPE_CHECKING:
    from launch.config import Config
    from launch.run import Run
    from launch.tree import load, preset_names
else:
    __getattr__, __dir__ = on_demand(__name__)
