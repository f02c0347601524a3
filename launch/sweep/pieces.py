"""The units of a sweep: autoencoders, denoisers, sets, and then the sets' pace. Any number of processes make them, the cheapest first.

A piece is whole or goes on from where it was: trainings from their checkpoints, sets from their shards. What a rule gave up counts as
there, and nothing is made of it.
"""

from __future__ import annotations

import contextlib
import gc
import shutil
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from data_shards import durable
from data_shards.ledger import Ledger, Units
from launch.build import check_fit
from launch.machine import device_key, device_name
from launch.run import Run, device, read_result
from launch.stages import STAGES
from launch.stages.sample import SPEED, generator_of
from launch.stages.training import Training
from launch.sweep.axes import in_order
from launch.sweep.results import write_results
from launch.sweep.runs import JUDGES, Sweep, link
from launch.sweep.stopping import NAME as STOPPED
from launch.sweep.stopping import Hopeless, Stopped, Watched, stopped_in
from launch.work import Display, Phases, make_phases
from launch.worked import counted
from ldm.evaluation.envelope import TrainingSpectra
from ldm.evaluation.evaluation_result import EvaluationResult
from ldm.evaluation.reconstruction import Reconstruction, ReconstructionResult
from ldm.generation.speed import Pace, Speed

if TYPE_CHECKING:
    from typing_extensions import Self

TIMED = 5  # shards that a pace is of; one more warms up
BATCHES = 4  # of such a shard, at most: its images are made for nothing else
POLL_S = 1.0


class Piece(ABC):
    """One unit.

    Attributes:
        name: of the unit.
        after: what it is made from.
    """

    def __init__(self, sweep: Sweep, name: str, run: Run, *after: Piece) -> None:
        self.sweep, self.name, self.run, self.after = sweep, name, run, after

    @abstractmethod
    def whole(self) -> bool:
        """Whether all that it leaves is there."""

    @abstractmethod
    def make(self, display: Display) -> None:
        """Make it, or go on with it.

        Raises:
            Hopeless: a rule ends it.
        """

    def waits_for_features(self) -> bool:
        """Whether a loss of it takes the maps of the shared feature encoder."""
        return any(isinstance(piece, Judge) and piece.name == "features" for piece in self.after)

    def stopped(self) -> Stopped | None:
        """Why it, or what it is made from, was given up."""
        return stopped_in(self.run.folder) or next((why for piece in self.after if (why := piece.stopped())), None)


class Judge(Piece):
    """A network that judges all sets."""

    def whole(self) -> bool:
        return STAGES[self.name].done(self.run)

    def make(self, display: Display) -> None:
        STAGES[self.name].make(self.run, display)


class AutoencoderPiece(Piece):
    """An autoencoder, the latents of the data, and how well it rebuilds people held out."""

    @property
    def result(self) -> Path:
        return self.run.folder / "reconstruction.json"

    def whole(self) -> bool:
        result = read_result(self.result, ReconstructionResult)
        return result is not None and result.psnr_gain_db >= self.sweep.rules.psnr_gain_db

    def make(self, display: Display) -> None:
        from ldm.checkpoints.trained import load_autoencoder

        STAGES["vqgan"].make(self.run, display)
        for warning in STAGES["encode"].make(self.run, display):
            display.note(f"{self.name}: {warning}")
        rebuilt = Reconstruction(self.run.open(self.run.dataset), load_autoencoder(self.run.vqgan, device()), self.result)
        gain = make_phases(
            [("training images", lambda: rebuilt.training), ("reconstruction", lambda: rebuilt)], display, (0, 1)
        ).psnr_gain_db
        if not gain >= self.sweep.rules.psnr_gain_db:
            rule = "PSNR of people held out above that of the training mean image, in dB"
            raise Hopeless(Stopped(rule=rule, figure=gain, bound=self.sweep.rules.psnr_gain_db, samples=self.run.config.vqgan.loop.samples))


class DenoiserPiece(Piece):
    """A denoiser on the latents of an autoencoder that it may share."""

    def whole(self) -> bool:
        return reached(STAGES["diffusion"], self.run)

    def make(self, display: Display) -> None:
        autoencoder = self.after[0].run
        link(self.run.folder, (autoencoder.vqgan, autoencoder.latents))
        STAGES["diffusion"].make(self.run, Watched(display, self.sweep.rules, self.run.config.diffusion.objective))


class SetPiece(Piece):
    """A synthetic set of a trained denoiser, and its evaluation."""

    def whole(self) -> bool:
        return read_result(self.run.folder / "evaluate.json", EvaluationResult) is not None

    def make(self, display: Display) -> None:
        denoiser, *judges = self.after
        autoencoder, shared = denoiser.after[0].run, self.sweep.folder
        sibling = next(denoiser.run.folder.glob("sets/*/gaussian-latents/dataset.json"), None)
        link(
            self.run.folder,
            [
                *(autoencoder.vqgan, denoiser.run.diffusion, shared / "envelope.json"),
                *autoencoder.folder.glob("reconstruction.units-*"),  # measured already
                *([sibling.parent] if sibling and sibling.parent.parent != self.run.folder else []),
                *(shared / name for judge in judges for name in (judge.name, f"{judge.name}.json")),
            ],
        )
        self.run.freeze()
        for warning in STAGES["sample"].make(self.run, display):
            display.note(f"{self.name}: {warning}")
        STAGES["evaluate"].make(self.run, display)


def reached(stage: Training, run: Run) -> bool:
    """Whether a training has committed its last checkpoint; who loads it verifies it."""
    return (stage.progress(stage.target(run.config)).checkpoint or -1) >= getattr(run.config, stage.name).loop.samples


class Pieces(Units):
    """All pieces of a sweep as units."""

    def __init__(self, sweep: Sweep, display: Display) -> None:
        self.sweep, self.display, self.out = sweep, display, sweep.folder
        self.pieces = list(pieces_of(sweep))
        self.names = [piece.name for piece in self.pieces]
        self.there: set[int] = set()

    def published(self, number: int) -> bool:
        piece = self.pieces[number]
        if number not in self.there and piece.stopped() is None and piece.whole():
            self.there.add(number)  # what is whole stays, and to look costs more than to remember
        return number in self.there or piece.stopped() is not None

    def ready(self, number: int) -> bool:
        return all(self.published(self.pieces.index(piece)) for piece in self.pieces[number].after)

    def make(self, number: int) -> None:
        """Make a piece, or write down why it was given up."""
        piece = self.pieces[number]
        if isinstance(piece, Judge):  # without it no set could be judged: what befalls it ends the sweep
            piece.make(self.display)
            return
        shared = self.sweep.shared
        link(piece.run.folder, (self.sweep.folder / "data", *((shared.features,) if piece.waits_for_features() else ())))
        with counted(piece.run.folder, "sweep"):
            if stopped := self._made(piece):
                self.display.note(f"{piece.name} is given up: {stopped}")
                stopped.write(piece.run.folder)
                gc.collect()  # the traceback held tensors of what was given up
                torch.cuda.empty_cache()
        if stopped or isinstance(piece, SetPiece):
            write_results(self.sweep)  # as far as they go, for who looks on

    def _made(self, piece: Piece) -> Stopped | None:
        """Make a piece; why it is given up, if so."""
        from ldm.speed import out_of_memory
        from ldm.training.loop import Diverged

        try:
            piece.make(self.display)
        except Hopeless as error:
            return error.stopped
        except Diverged as error:
            return Stopped(rule=error.what)
        except RuntimeError as error:
            if not out_of_memory(error):
                raise
            return Stopped(rule=f"no memory for it on {device_name(device())}", passing=True)
        return None


class Paces(Units):
    """The pace of each finished set, from shards that are made for nothing else, beside it, and removed.

    While it was made, other pieces were trained on the same device, by further processes. Now all pieces are there; of several processes
    on a device one measures, and the others wait for it.
    """

    def __init__(self, sweep: Sweep) -> None:
        self.sweep, self.out = sweep, sweep.folder
        self.pieces = [piece for piece in pieces_of(sweep) if isinstance(piece, SetPiece)]
        self.names = [f"{piece.name}.pace" for piece in self.pieces]
        self.turn = contextlib.ExitStack()

    def __enter__(self) -> Self:
        ledger, lease = Ledger(self.out), f"pace-{device_key(device())}"
        while not all(map(self.published, range(len(self.names)))):
            with contextlib.ExitStack() as turn:
                if turn.enter_context(ledger.lease(lease)):
                    self.turn = turn.pop_all()
                    break
            time.sleep(POLL_S)
        return self

    def __exit__(self, *error: object) -> None:
        self.turn.close()

    def published(self, number: int) -> bool:
        piece = self.pieces[number]
        pace = read_result(piece.run.folder / SPEED, Pace)
        return (pace is not None and pace.alone) or piece.stopped() is not None

    def make(self, number: int) -> None:
        from ldm.generation.generate import SyntheticSet

        run, speed = self.pieces[number].run, Speed()
        scratch = run.folder / "timed"
        shutil.rmtree(scratch, ignore_errors=True)  # of a process that was killed
        with counted(run.folder, "sweep"):
            generator = generator_of(run, speed)
            shard = min(run.config.sample.shard, BATCHES * generator.batch)
            SyntheticSet(generator, scratch, count=(1 + TIMED) * shard, shard=shard).complete()
            shutil.rmtree(scratch)
            durable.write_json(run.folder / SPEED, asdict(replace(speed.pace(device_name(device())), alone=True)))


def try_again(sweep: Sweep) -> None:
    """Take back what was given up for want of memory: a neighbour may have held it. Each process that is started tries once."""
    for piece in pieces_of(sweep):
        stopped = stopped_in(piece.run.folder)
        if stopped and stopped.passing:
            (piece.run.folder / STOPPED).unlink(missing_ok=True)


def phases(sweep: Sweep, display: Display) -> Phases:
    """What all share, then all pieces.

    Raises:
        InputError: the data do not fit one of the autoencoders.
    """
    shared, data = sweep.shared, STAGES["data"]
    if not data.done(shared):
        data.make(shared, display)
    dataset = shared.open(shared.dataset)
    for cell in sweep.axes.cells():
        check_fit(sweep.autoencoder(cell).config.vqgan, dataset)
    if shared.config.sample.gate and not shared.envelope.exists():
        yield "training spectra", partial(spectra_of, shared)
    yield "sweep", partial(Pieces, sweep, display)


def spectra_of(shared: Run) -> TrainingSpectra:
    """Of the training images; each process opens the dataset for itself."""
    return TrainingSpectra(shared.open(shared.dataset), shared.envelope)


def pieces_of(sweep: Sweep) -> Iterator[Piece]:
    """Each before what is made from it; the cheapest configurations first."""
    judges = [Judge(sweep, name, sweep.shared) for name in JUDGES if not STAGES[name].left_out(sweep.shared)]
    yield from judges

    def wanted(stage: str, run: Run) -> list[Judge]:
        return [judge for judge in judges if judge.name in STAGES[stage].waits_for(run.config)]

    autoencoders: dict[str, AutoencoderPiece] = {}
    for cell in in_order(sweep.axes.cells(), sweep.costs):
        if cell.autoencoder not in autoencoders:
            run = sweep.autoencoder(cell)
            autoencoders[cell.autoencoder] = AutoencoderPiece(sweep, cell.autoencoder, run, *wanted("vqgan", run))
            yield autoencoders[cell.autoencoder]
        run = sweep.denoiser(cell)
        denoiser = DenoiserPiece(sweep, cell.name, run, autoencoders[cell.autoencoder], *wanted("diffusion", run))
        yield denoiser
        for sampler in sweep.axes.samplers:
            run = sweep.set_of(cell, sampler)
            yield SetPiece(sweep, f"{cell.name}.{run.folder.name}", run, denoiser, *judges)
