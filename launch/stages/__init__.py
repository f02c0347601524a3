"""The stages of a run: STAGES is the only table of them. A new one is a file here, and a line there."""

from __future__ import annotations

from launch.stages.audit import Audit
from launch.stages.copies import Copies
from launch.stages.data import Data
from launch.stages.diffusion import Diffusion
from launch.stages.encode import Encode
from launch.stages.evaluate import Evaluate
from launch.stages.features import Features
from launch.stages.report import Report
from launch.stages.sample import Sample
from launch.stages.segmenter import Segmenter
from launch.stages.stage import Stage
from launch.stages.vqgan import VQGAN

STAGES: dict[str, Stage] = {
    stage.name: stage
    for stage in (Data(), Segmenter(), Features(), Copies(), VQGAN(), Encode(), Diffusion(), Sample(), Evaluate(), Audit(), Report())
}
"""By name, in the order in which a run makes them."""
