"""Stage features: the encoder in whose features images are compared, on the run's training images; and what its features can tell."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from launch.run import Run, device, read_result
from launch.stages.training import Training
from launch.work import Display


class Features(Training):
    name, verb, after = "features", "train features", ("data",)
    reads, writes = "the dataset", "`features/`, `features.json`: what each feature space tells of held-out people"

    def data(self, run: Run) -> Path | str:
        return run.dataset

    def builder(self, run: Run) -> Callable[..., Any]:
        from launch.build_judges import features_trainer

        return features_trainer

    def done(self, run: Run) -> bool:
        """It is trained, and its features, as they are now, were probed."""
        from ldm.checkpoints.trained import trained_digest
        from ldm.evaluation.probes import Probed

        if not super().done(run):
            return False
        seen = read_result(probed_path(run), Probed)
        if seen is None or (seen.dataset, seen.encoder) != (run.open(run.dataset).digest, trained_digest(run.features)):
            return False
        return all(map(seen.knows, run.config.evaluate.extractors))

    def make(self, run: Run, display: Display, place: tuple[int, int] = (0, 1)) -> list[str]:
        """Train together; then each process probes, to the same end: none judges before it knows which spaces are refused."""
        from ldm.evaluation.probes import probe

        super().make(run, display, place)
        if self.done(run):
            return []
        watch = partial(display.over, title="probe", unit="batch")
        probed = probe(
            run.open(run.dataset), run.features, probed_path(run), asked=run.config.evaluate.extractors, device=device(), watch=watch
        )
        return [f"no judge of images: {name}: {worth.refused}" for name, worth in probed.spaces.items() if worth.refused]


def learned_is_weak(run: Run) -> str | None:
    """That the probes refused the encoder as a judge, for who trains with its maps; None where they did not."""
    from ldm.evaluation.probes import Probed

    seen = read_result(probed_path(run), Probed)
    refused = seen.spaces["learned"].refused if seen and "learned" in seen.spaces else None
    return f"the maps of the feature encoder enter the loss, and it was refused as a judge: {refused}" if refused else None


def probed_path(run: Run) -> Path:
    """Beside the encoder's folder, where its extractor looks."""
    return run.features.with_suffix(".json")
