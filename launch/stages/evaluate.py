"""Stage evaluate: reconstruction of held-out people, evaluation of the set, and the baseline of decoded Gaussian latents."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from data_shards.errors import InputError
from data_shards.manifest import NAME
from data_shards.packing.splits import LEAST_PEOPLE, held_out_split
from data_shards.reading.dataset import Dataset
from launch.headline import HEADLINE
from launch.run import Run, device, figures, read_result, record
from launch.stages.stage import MeasuredStage, check_sampled, check_trained
from launch.stages.training import trained
from launch.work import Phases

if TYPE_CHECKING:
    from ldm.evaluation.evaluate import Evaluation
    from ldm.evaluation.reconstruction import ReconstructionResult
    from ldm.evaluation.sets import Part
    from ldm.evaluation.whitening import Whitening

LEARNED = "learned"  # of the extractors, the one that is trained in the run
BASELINE_IMAGES = 1024
BASELINE_BATCH = 8  # decoded at a time, in fp32
MORE_PEOPLE = "retinaforge data pack FOLDER DATASET --splits train=0.7,val=0.2,test=0.1, into another folder"


class Evaluate(MeasuredStage):
    name, verb, after = "evaluate", "evaluate", ("sample", "features")
    reads, writes = "dataset, `synthetic/`, `features/`, `segmenter/`", "`evaluate.json`, `reconstruction.json`, `gaussian-latents/`"

    def check(self, run: Run) -> None:
        check_trained(run, "vqgan", "diffusion")
        check_sampled(run)

    def done(self, run: Run) -> bool:
        """It has seen the present sets, and as this version judges."""
        from ldm.evaluation.evaluation_result import EvaluationResult
        from ldm.evaluation.torchscript import same_script

        seen = read_result(run.folder / "evaluate.json", EvaluationResult)
        if seen is None or not (run.synthetic / NAME).exists():
            return False
        if not {figure.key for figure in HEADLINE} - {"seconds"} <= set(figures(run)):
            return False
        if (seen.reference.digest, seen.synthetic.digest) != (run.open(run.dataset).digest, Dataset(run.synthetic).digest):
            return False
        judges, wanted = (seen.learned, seen.labelled_by), (encoder_digest(run) if LEARNED in asked(run) else None, labeller_digest(run))
        if judges != wanted or (seen.config.extractors, seen.config.pairs) != (asked(run), run.config.evaluate.pairs):
            return False
        return all(same_script(name, space.extractor) for name, space in seen.spaces.items())

    def cautions(self, run: Run) -> list[str]:
        missing = set(run.config.evaluate.extractors) - set(asked(run))
        return [f"no learned feature space among the judges: retinaforge train features PRESET run={run.folder}"] if missing else []

    def phases(self, run: Run) -> Phases:
        from ldm.checkpoints.segmenter import load_segmenter
        from ldm.checkpoints.trained import load_autoencoder, load_denoiser
        from ldm.evaluation.baseline import GaussianLatents
        from ldm.evaluation.evaluate import Evaluation
        from ldm.evaluation.evaluation_result import EvaluateConfig
        from ldm.evaluation.reconstruction import Reconstruction
        from ldm.generation.generate import taught_by

        if self.done(run):
            return
        autoencoder, denoiser = load_autoencoder(run.vqgan, device()), load_denoiser(run.diffusion, device())
        real, wanted = run.open(run.dataset), run.config.sample
        how = {"shard": wanted.shard, "seed": wanted.seed, "batch": BASELINE_BATCH, "quantise": wanted.quantise}
        count = min(wanted.count, BASELINE_IMAGES)
        yield "baseline", partial(GaussianLatents, autoencoder, denoiser, run.folder / "gaussian-latents", count=count, **how)
        rebuilt = Reconstruction(real, autoencoder, run.folder / "reconstruction.json")
        yield "training images", lambda: rebuilt.training
        yield "reconstruction", lambda: rebuilt
        synthetic = run.images()
        judged = HeldOut.of(real, synthetic, Dataset(run.folder / "gaussian-latents"))
        spaces, segmenter = asked(run), load_segmenter(run.segmenter, device()) if labeller_digest(run) else None
        config = EvaluateConfig(against=held_out_split(real), extractors=spaces, pairs=run.config.evaluate.pairs, device=device())
        judges = {"learned": run.features if LEARNED in spaces else None, "labeller": segmenter}
        judges["taught_by"] = taught_by(autoencoder, denoiser)
        units = Evaluation(real, synthetic, config, run.folder / "evaluate.json", also=judged.parts, **judges)
        yield self.name, lambda: units
        note_figures(run, rebuilt.result(), {name: judged.frechet(units, name) for name in spaces})

    def grows(self, run: str) -> tuple[str, ...]:
        return (*super().grows(run), f"{run}/gaussian-latents/*.tar", f"{run}/reconstruction.units-*/*.safetensors")


def asked(run: Run) -> tuple[str, ...]:
    """The feature spaces that the run's set is judged in: without the learned one where none was trained."""
    return tuple(name for name in run.config.evaluate.extractors if name != LEARNED or encoder_digest(run))


def encoder_digest(run: Run) -> str | None:
    """Of the feature encoder; None where there is none, or its training has not ended."""
    from ldm.checkpoints.trained import trained_digest

    return trained_digest(run.features) if trained(run, "features") else None


def labeller_digest(run: Run) -> str | None:
    """Of the segmenter that draws the label maps of both sets; None where there is none, or its training has not ended."""
    from ldm.checkpoints.trained import trained_digest

    return trained_digest(run.segmenter) if trained(run, "segmenter") else None


def note_figures(run: Run, rebuilt: ReconstructionResult, by_space: dict[str, FrechetOverBaseline]) -> None:
    """The headline figures, into metrics.json; those that the data cannot bear with their reason.

    The ratio is that of the first feature space; where another one puts samples and Gaussian latents in another order, that is said.
    """
    from ldm.evaluation.tables import FEW_PEOPLE

    figures_of, left_out = {"codes_used": rebuilt.codes_used, "psnr_gain_db": rebuilt.psnr_gain_db}, {}
    if rebuilt.splits == ("train",):
        figures_of["psnr_gain_db"], left_out["psnr_gain_db"] = None, "no people held out of training"
    ratio, frechet = "frechet_over_gaussian_latents", next(iter(by_space.values()))
    figures_of[ratio] = frechet.ratio
    if reason := frechet.reason or out_of_reach(frechet):
        figures_of[ratio], left_out[ratio] = None, reason
    few = f"only {frechet.people} people held out: who they are decides it" if frechet.people < FEW_PEOPLE else ""
    cautions = {"psnr_gain_db": few} if few and figures_of["psnr_gain_db"] is not None else {}
    if figures_of[ratio] is not None:
        floor = "" if frechet.ratio_floor is None else f"{frechet.n_floor} images of half of the training people: {frechet.ratio_floor:.2f}"
        others = [f"by {name} {other.ratio:.2f}" for name, other in list(by_space.items())[1:] if other.ratio is not None]
        cautions[ratio] = "; ".join(part for part in (floor, *others, few) if part)
    spaces = {name: asdict(other) for name, other in by_space.items()}
    record(run, **figures_of, psnr_db=rebuilt.psnr_db, frechet=asdict(frechet), spaces=spaces, left_out=left_out, cautions=cautions)


def out_of_reach(frechet: FrechetOverBaseline) -> str | None:
    """Why no set could reach what is wanted of the ratio: as many training images do not. None where it can be reached, or is not known."""
    wanted = next(figure.wanted for figure in HEADLINE if figure.key == "frechet_over_gaussian_latents")
    if frechet.ratio_floor is None or frechet.n_floor < frechet.n or frechet.ratio_floor <= wanted:
        return None
    return f"of {frechet.n} images even training images come to {frechet.ratio_floor:.2f}, where at most {wanted} is wanted: too few"


@dataclass(frozen=True, kw_only=True)
class FrechetOverBaseline:
    """`frechet` in metrics.json: Fréchet distances to all people held out, on whitened features. None: could not be had.

    The floor is half of the training people, in features that the other half whitens: of what they are whitened by themselves, real images
    are white to the last digit, and no honest set is. In a space that was trained on these people, `learned`, there is no floor.

    Attributes:
        samples, gaussian_latents: of both sets, whitened by the training images.
        floor: of half of the training people, whitened by the other half.
        ratio: of the samples over the Gaussian latents.
        ratio_floor: of the floor over as many of the Gaussian latents, whitened alike.
        effective_rank_whitened: effective dimensions of the features.
        images, people: held out.
        n, n_floor: images of each set, and of the floor.
        reason: why there is no ratio.
    """

    samples: float | None = None
    gaussian_latents: float | None = None
    floor: float | None = None
    ratio: float | None = None
    ratio_floor: float | None = None
    effective_rank_whitened: float | None = None
    images: int
    people: int
    n: int
    n_floor: int
    reason: str | None = None


@dataclass(frozen=True, kw_only=True)
class HeldOut:
    """All people held out of training, and equally many images of two sets, to be compared with them; and training people for the floor.

    To the training split the distances would be a yardstick that a set of copies wins.

    Attributes:
        train: by whom the features of both sets are whitened.
        floor, whitens_floor: two halves of these people; None where there is only one person.
    """

    held_out: tuple[Part, ...]
    samples: Part
    gaussian_latents: Part
    train: Part
    floor: Part | None
    whitens_floor: Part | None

    @classmethod
    def of(cls, real: Dataset, samples: Dataset, gaussian_latents: Dataset) -> HeldOut:
        """At the number of images that both sets have."""
        from ldm.evaluation.sets import WHITENED_BY, Part, shares

        n = min(dataset.count("synthetic") for dataset in (samples, gaussian_latents))
        splits = [name for name, info in real.splits.items() if info.count and name != "train"]
        halves = shares(real, "train", (n, WHITENED_BY)) if real.splits["train"].subjects > 1 else (None, None)
        return cls(
            held_out=tuple(Part.of(real, split) for split in splits),
            samples=Part.of(samples, "synthetic", n),
            gaussian_latents=Part.of(gaussian_latents, "synthetic", n),
            train=Part.of(real, "train", WHITENED_BY),
            floor=halves[0],
            whitens_floor=halves[1],
        )

    @property
    def parts(self) -> list[Part]:
        """Whose features are wanted."""
        parts = (*self.held_out, self.samples, self.gaussian_latents, self.train, self.floor, self.whitens_floor)
        return [part for part in parts if part is not None]

    def frechet(self, measured: Evaluation, space: str) -> FrechetOverBaseline:
        """Both sets' distances to the held-out people, and the floor's, in one feature space."""
        from ldm.evaluation.sets import evenly

        result = FrechetOverBaseline(
            images=sum(len(part.sample_N) for part in self.held_out),
            people=len({subject for part in self.held_out for subject in part.units()}),
            n=len(self.samples.sample_N),
            n_floor=len(self.floor.sample_N) if self.floor else 0,
        )
        if result.people < LEAST_PEOPLE:
            return replace(result, reason=f"{result.people} people held out of training, at least {LEAST_PEOPLE} wanted: {MORE_PEOPLE}")
        if result.n < 2:
            return replace(result, reason="one synthetic image")
        if refused := measured.spaces[space].refused:
            return replace(result, reason=refused)
        white = measured.whitening(space, self.train)
        if white is None:
            return replace(result, reason="the training images do not differ in their features, or these are not finite")
        try:
            samples, gaussian_latents = (self._distance(measured, space, white, part) for part in (self.samples, self.gaussian_latents))
        except InputError as error:  # features that are not finite
            return replace(result, reason=error.what)
        result = replace(result, samples=samples, gaussian_latents=gaussian_latents)
        if gaussian_latents <= 0:
            return replace(result, reason="decoded Gaussian latents are at distance 0")
        result = replace(result, ratio=samples / gaussian_latents, effective_rank_whitened=white.effective_rank_whitened)
        white = measured.whitening(space, self.whitens_floor) if self.floor and space != LEARNED else None
        if white is None or result.n_floor < 2:
            return result
        as_many = replace(self.gaussian_latents, sample_N=self.gaussian_latents.sample_N[evenly(result.n, result.n_floor)])
        floor, beside = (self._distance(measured, space, white, part) for part in (self.floor, as_many))
        return replace(result, floor=floor, ratio_floor=floor / beside if beside > 0 else None)

    def _distance(self, measured: Evaluation, space: str, white: Whitening, part: Part) -> float:
        """Of a part to the people held out."""
        from ldm.evaluation.frechet import frechet_distance

        held_out_ND = np.concatenate([measured.features(of, space) for of in self.held_out])
        return frechet_distance(white(held_out_ND), white(measured.features(part, space)))
