"""Models, training, generation and evaluation. Knows data_shards; never slurm or launch."""

from typing import TYPE_CHECKING

from data_shards.on_demand import on_demand

__all__ = [
    "AuditConfig",
    "Autoencoder",
    "DecodedDataset",
    "Denoiser",
    "EvaluateConfig",
    "Generator",
    "SamplerConfig",
    "Segmenter",
    "audit",
    "encode_dataset",
    "evaluate",
    "generate_set",
    "load_autoencoder",
    "load_denoiser",
    "load_segmenter",
]

if TYPE_CHECKING:
    from ldm.authenticity.audit import AuditConfig, audit
    from ldm.checkpoints.segmenter import Segmenter, load_segmenter
    from ldm.checkpoints.trained import Autoencoder, Denoiser, load_autoencoder, load_denoiser
    from ldm.evaluation.evaluate import evaluate
    from ldm.evaluation.evaluation_result import EvaluateConfig
    from ldm.generation.decode import DecodedDataset
    from ldm.generation.encode import encode_dataset
    from ldm.generation.generate import generate_set
    from ldm.generation.images import Generator
    from ldm.models.config import SamplerConfig
else:
    __getattr__, __dir__ = on_demand(__name__)
