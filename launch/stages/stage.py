"""The one face of all stages: what `run`, `submit`, `status`, `runs`, `resume`, pipelines and the docs' table of verbs ask of them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from data_shards.errors import InputError, command
from data_shards.manifest import NAME
from launch.work import Display, Phases, make_phases

if TYPE_CHECKING:
    from launch.config import Config
    from launch.run import Run


@dataclass(frozen=True, kw_only=True)
class Target:
    """What a job makes of its run: target.json in the job's folder, so that its progress is read without the configuration.

    Attributes:
        run: the run's folder, absolute.
        stage: name of a stage, or 'run' for all of them.
        goal: samples to train on, or images to generate; 0 where neither is made.
        every: samples between two checkpoints, of a training.
        shard: images a shard, of a set.
    """

    run: str
    stage: str
    goal: int = 0
    every: int = 0
    shard: int = 0


@dataclass(frozen=True, kw_only=True)
class Progress:
    """How far a job's work has come; None: not known (yet).

    Attributes:
        done, goal: samples trained on or images generated, and how many there shall be.
        per_s: samples a second, of late.
        checkpoint: samples in the newest checkpoint whose commit is whole.
        checkpoint_unix_s: when that was committed.
        faults: what was found wrong with it, where it was verified.
        held: of work in units, what is being made, and host:pid of who makes it.
    """

    done: int | None = None
    goal: int | None = None
    per_s: float | None = None
    checkpoint: int | None = None
    checkpoint_unix_s: float | None = None
    faults: tuple[str, ...] | None = None
    held: dict[str, str] = field(default_factory=dict)

    @property
    def eta_s(self) -> float | None:
        """Seconds to the goal at the present pace."""
        if self.done is None or not (self.goal and self.per_s):
            return None
        return max(0, self.goal - self.done) / self.per_s


class Stage(ABC):
    """A stage finds what those before it left in the run folder and leaves its own; one that is done does nothing when called again.

    Its verb comes with it, `retinaforge NAME PRESET`, and the docstring of its class is the verb's help; a verb that takes further words
    stands in launch/cli. `runs` shows `standing`, `status` shows `progress` of a job on it, and that a job which was killed got on before
    is seen by what `grows`.

    Attributes:
        name: in pipelines, and of its jobs, RUN/NAME.
        verb: the words after `retinaforge` that make it alone.
        after: names of the stages that it always waits for.
        reads, writes: for the docs' table.
        collective: all ranks work on it together, as the trainers do.
        in_units: any number of processes make it, each the units that are not there yet.
    """

    name: ClassVar[str]
    verb: ClassVar[str]
    after: ClassVar[tuple[str, ...]] = ()
    reads: ClassVar[str]
    writes: ClassVar[str]
    collective: ClassVar[bool] = False
    in_units: ClassVar[bool] = False

    def waits_for(self, config: Config) -> tuple[str, ...]:
        """Names of the stages that have to be made before it: `after`, and what this configuration wants besides."""
        return self.after

    def target(self, config: Config) -> Target:
        """What a job on this stage makes of a run of this configuration."""
        return Target(run=str(Path(config.run).absolute()), stage=self.name)

    @abstractmethod
    def check(self, run: Run) -> None:
        """Say what is wrong with what the stage reads, before anything is written.

        Raises:
            InputError: as said.
        """

    @abstractmethod
    def done(self, run: Run) -> bool:
        """Whether the stage has left what the next ones need, made from what the ones before it left.

        Raises:
            UnsafeResume: checkpoints, but none that can be loaded.
        """

    def left_out(self, run: Run) -> str | None:
        """Why a whole run goes without this stage, and without what it would leave; None: it does not."""
        return None

    def cautions(self, run: Run) -> list[str]:
        """What a person should know before it is made."""
        return []

    @abstractmethod
    def make(self, run: Run, display: Display, place: tuple[int, int] = (0, 1)) -> list[str]:
        """Make it; what a person should know before going on.

        Args:
            place: (k, n): the k-th of n processes that make it together, where it is collective or in units.
        """

    @abstractmethod
    def where(self, run: Run) -> str:
        """Where it lies, in a line."""

    def progress(self, target: Target, *, verify: bool = False) -> Progress:
        """How far it is, from the files of the run alone.

        Args:
            verify: also hash the parts of the newest checkpoint, which takes as long as reading it.
        """
        return Progress()

    @abstractmethod
    def standing(self, run: Path) -> str:
        """How far it is in a word or two, from what lies in the run's folder."""

    def grows(self, run: str) -> tuple[str, ...]:
        """Patterns of files that change as it gets on, `run` being a pattern of the folder; none for what begins anew each time."""
        return ()


class UnitStage(Stage):
    """A stage whose work is cut into units, for any number of processes, which may come late, be killed, or be started twice."""

    in_units = True

    @abstractmethod
    def phases(self, run: Run) -> Phases:
        """Its units: each phase is asked for once all units of the one before are there, and what they make is finished."""

    def workers(self, run: Run) -> int:
        """Processes that each of those started by a launcher, or by hand, makes of itself."""
        return 1

    def make(self, run: Run, display: Display, place: tuple[int, int] = (0, 1)) -> list[str]:
        make_phases(self.phases(run), display, place, workers=self.workers(run))
        return []


class MeasuredStage(UnitStage):
    """A stage that measures: its units lie in RUN/NAME.units-…, and what they are merged to in RUN/NAME.json."""

    def where(self, run: Run) -> str:
        return f"result: {run.folder / self.name}.json"

    def standing(self, run: Path) -> str:
        if (run / f"{self.name}.json").exists():
            return "done"
        units = sum(len(list(run.glob(pattern))) for pattern in MeasuredStage.grows(self, "."))
        return f"{units} unit(s)" if units else ""

    def grows(self, run: str) -> tuple[str, ...]:
        return (f"{run}/{self.name}.units-*/*.safetensors", f"{run}/{self.name}.units-*/*/*.safetensors")


def check_sampled(run: Run) -> None:
    """Say that there is no synthetic set to judge, before anything is written.

    Raises:
        InputError: as said.
    """
    if not (run.synthetic / NAME).exists():
        raise InputError(
            "no synthetic set",
            where=run.synthetic,
            expected=f"{NAME}: a set that is whole",
            mend=command("retinaforge", "sample", "PRESET", f"run={run.folder}"),
        )


def check_trained(run: Run, *stages: str) -> None:
    """Say that a network is missing before anything is written; which of its checkpoints is whole is seen as one is loaded.

    Raises:
        InputError: no commit of one of these trainings.
    """
    from ldm.checkpoints.commit import COMMIT

    for stage in stages:
        folder = getattr(run, stage)
        if not any((folder / "checkpoints").glob(f"samples-*/{COMMIT}")):
            raise InputError(
                f"no trained {stage}",
                where=folder,
                expected="a committed checkpoint",
                mend=command("retinaforge", "train", stage, "PRESET", f"run={run.folder}"),
            )
