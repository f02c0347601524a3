"""The command line: one file a verb group. Errors for people end here, with their exit code."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import traceback
from types import FrameType

import typer
from rich.console import Console

import launch
from data_shards.errors import InputError, RetinaforgeError, TryAgain
from launch.cli import attack, ckpt, codebook, data, doctor, evaluate, logs, resume, slurm_local, stages, status, submit, sweep
from launch.stages import STAGES

app = typer.Typer(
    name="retinaforge",
    help="Train generative models on hyperspectral retinal images: shards in, an evaluated synthetic set out.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(data.app, name="data")
app.add_typer(stages.train, name="train")
app.add_typer(codebook.app, name="codebook")
app.add_typer(ckpt.app, name="ckpt")
app.add_typer(slurm_local.app, name="slurm-local")
app.command("run")(stages.run)
app.command("sample")(stages.sample)
app.command("evaluate")(evaluate.evaluate)
app.command("audit")(evaluate.audit)
app.command("attack")(attack.attack)
app.command("report")(stages.report)
app.command("sweep")(sweep.sweep)
app.command("presets")(stages.presets)
app.command("submit")(submit.command)
app.command("resume")(resume.resume)
app.command("status")(status.status)
app.command("logs")(logs.logs)
app.command("cancel")(status.cancel)
app.command("runs")(status.runs)
app.command("doctor")(doctor.command)
_own_words = {command.name for command in app.registered_commands}
for stage in STAGES.values():
    if " " not in stage.verb and stage.verb not in _own_words:
        app.command(stage.verb, help=stage.__doc__)(stages.plain(stage.name))


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"retinaforge {launch.__version__}")
        raise typer.Exit


def _local_rank(given: int | None) -> None:
    """The deepspeed launcher says the local rank twice, here and in the environment, which is what counts."""
    if given is not None and os.environ.get("LOCAL_RANK") != str(given):
        raise InputError(
            f"--local_rank={given}, but LOCAL_RANK is {os.environ.get('LOCAL_RANK', 'not set')}",
            expected="a launcher's word, not yours",
            mend="deepspeed --module launch …, torchrun -m launch … or accelerate launch -m launch …",
        )


@app.callback()
def _root(
    version: bool = typer.Option(False, "--version", callback=_version, is_eager=True, help="Print the version and stop."),
    local_rank: int = typer.Option(None, "--local_rank", callback=_local_rank, hidden=True),
) -> None:
    pass


def _stopped(number: int, _: FrameType | None) -> None:
    """Leave as an exception does, so that what is half written is removed on the way."""
    with contextlib.suppress(OSError, RuntimeError, ValueError):  # nobody reads it, or another word is being written
        print(f"stopped by {signal.Signals(number).name}; the same command again goes on", file=sys.stderr)
    raise SystemExit(TryAgain.exit_code)


def main() -> None:
    """Entry point. Exit codes: 0 done; 2 wrong input or config; 3 unsafe to resume; 4 data corrupt; 75 try again."""
    signal.signal(signal.SIGTERM, _stopped)  # training listens for itself, see slurm/preempt.py
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # a shell starts jobs in the background with it ignored
        signal.signal(signal.SIGINT, _stopped)
    try:
        app()
        code = 0
    except SystemExit as left:
        code = left.code if isinstance(left.code, int) else int(left.code is not None)
    except RetinaforgeError as error:
        console = Console(stderr=True)
        console.print(f"[bold red]{type(error).__name__}[/]: ", end="")
        console.print(str(error), markup=False, highlight=False, soft_wrap=True)
        code = error.exit_code
    except BrokenPipeError:  # `retinaforge … | head`: the reader has gone
        code = 0
    except Exception:
        if not _among_ranks() and "mpi4py.MPI" not in sys.modules:
            raise
        traceback.print_exc()
        code = 1
    _flush()
    if code and "mpi4py.MPI" in sys.modules:
        from slurm.rank import end_mpi

        end_mpi(code)
    if _among_ranks():
        # Python's own end may wait for ever: it destroys the process group with the interpreter's lock held, for which the
        # group's threads wait (seen with gloo in 1 of 10 runs); and ZeRO-3 aborts there now and then
        os._exit(code)
    raise SystemExit(code)


def _flush() -> None:
    """Write out what was said; where the reader has gone, to nobody, or Python would complain at its exit."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _among_ranks() -> bool:
    """This process is in a process group of torch."""
    distributed = sys.modules.get("torch.distributed")
    return distributed is not None and distributed.is_available() and distributed.is_initialized()
