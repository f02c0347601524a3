"""When a sweep gives a configuration up: stated rules, each with the figure and the bound that decided it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from data_shards import durable
from data_shards.errors import RetinaforgeError
from launch.run import read_result
from launch.work import Display, Report
from ldm.models.config import ObjectiveConfig
from ldm.models.objective import white_loss

NAME = "stopped.json"
FORMAT = "retinaforge-stopped-1"


@dataclass(frozen=True, kw_only=True)
class Rules:
    """Attributes:
    psnr_gain_db: an autoencoder whose PSNR on people held out is less above that of the training mean image is not diffused on.
    share: of a denoiser's training, from where on its validation loss is looked at, and
    of_white: the share of the loss of a denoiser that takes latents for white noise (objective.white_loss) at which it is given up.
    """

    psnr_gain_db: float = 3.0
    share: float = 0.25
    of_white: float = 1.0


@dataclass(frozen=True, kw_only=True)
class Stopped:
    """stopped.json, in the folder of what was given up.

    Attributes:
        rule: what was asked of it, or what befell it.
        figure, bound: what it reached, and what was wanted; None where there is no number.
        samples: trained on until then.
        passing: whether it may go otherwise another time.
    """

    format: str = FORMAT
    rule: str
    figure: float | None = None
    bound: float | None = None
    samples: int = 0
    passing: bool = False

    def __str__(self) -> str:
        numbers = "" if self.figure is None or self.bound is None else f": {self.figure:.3g}, bound {self.bound:.3g}"
        return f"{self.rule}{numbers}" + (f" ({self.samples:,} samples)" if self.samples else "")

    def write(self, folder: Path) -> None:
        durable.write_json(folder / NAME, asdict(self))


def stopped_in(folder: Path) -> Stopped | None:
    """What was given up there."""
    return read_result(folder / NAME, Stopped)


class Hopeless(RetinaforgeError):
    """A training that a rule ends."""

    def __init__(self, stopped: Stopped) -> None:
        super().__init__(str(stopped))
        self.stopped = stopped


class Watched:
    """A display that ends a denoiser's training by the rule; otherwise the display that it wraps.

    The rule sees only what is logged, which follows from the seeds: a training that was killed and goes on is ended at the same sample.
    """

    def __init__(self, display: Display, rules: Rules, objective: ObjectiveConfig) -> None:
        self.display, self.rules, self.white = display, rules, white_loss(objective)
        self.over, self.note = display.over, display.note

    @contextmanager
    def training(self, title: str, total: int) -> Iterator[Report]:
        with self.display.training(title, total) as report:
            yield self._judging(report, total)

    def _judging(self, report: Report, total: int) -> Callable[[int, dict[str, float]], None]:
        def judged(samples: int, row: dict[str, float]) -> None:
            report(samples, row)
            share = row.get("val/loss", 0.0) / self.white
            if samples >= self.rules.share * total and not share < self.rules.of_white:
                rule = "validation loss over that of a denoiser that takes latents for white noise"
                raise Hopeless(Stopped(rule=rule, figure=share, bound=self.rules.of_white, samples=samples))

        return judged
