"""The same verb under every launcher: the same numbers, the same weights, and an exit code that says what was wrong."""

from __future__ import annotations

import functools
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml

from launch.stages import STAGES
from ldm.training.clock import TIMINGS
from slurm.meeting import free_port
from tests.commands import invoke
from tests.runs import NETWORKS

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
TINY = {
    **NETWORKS["vqgan"],
    "loop": {"samples": 16, "batch": 8, "log_every": 8, "checkpoint_every": 8},
    "engine": {"tracker": "none", "accumulation": 2, "clip": 0.5},
}
Command = list[object]
Launcher = Callable[[list[object], str, Path], list[Command]]
"""Words of our command line, mode, a hostfile of two slots to the commands to be started, one a node."""


def torchrun(words: list[object], mode: str, _: Path) -> list[Command]:
    chosen = [] if mode == "ddp" else [f"vqgan.engine.mode={mode}"]
    return [[BIN / "torchrun", "--standalone", "--nproc-per-node", 2, "-m", "launch", *words, *chosen]]


def accelerate(words: list[object], mode: str, _: Path) -> list[Command]:
    config = {"ddp": "cpu-2ranks.yaml", "zero2": "cpu-2ranks-zero2.yaml"}[mode]
    return [[BIN / "accelerate", "launch", "--config_file", f"launch/accelerate/{config}", "-m", "launch", *words]]


def deepspeed(words: list[object], mode: str, hosts: Path) -> list[Command]:
    """Both 'hosts' are this machine; without ssh the launcher is started on each of them."""
    chosen = [] if mode == "ddp" else [f"vqgan.engine.mode={mode}"]
    shared = [BIN / "deepspeed", "--hostfile", hosts, "--no_ssh", "--master_addr=127.0.0.1", f"--master_port={free_port()}"]
    return [[*shared, f"--node_rank={node}", "--module", "launch", *words, *chosen] for node in (0, 1)]


def mpiexec(words: list[object], mode: str, _: Path) -> list[Command]:
    return [[BIN / "mpiexec", "-n", 2, sys.executable, "-m", "launch", *words]]


def srun(words: list[object], mode: str, _: Path) -> list[Command]:
    """Without --kill-on-bad-exit: srun ends with its tasks' highest code, and a task that is ended because another failed has 75."""
    return [["srun", "--nodes=2", "--ntasks=2", sys.executable, "-m", "launch", *words]]


LAUNCHERS: dict[str, tuple[Launcher, int, str]] = {
    "torchrun": (torchrun, 1, ""),
    "accelerate": (accelerate, 1, ""),
    "deepspeed": (deepspeed, 2, "pip install -c constraints.txt -e '.[deepspeed]'"),
    "mpiexec": (mpiexec, 2, "pip install -c constraints.txt -e '.[mpi]'"),
    "srun": (srun, 2, ""),
}
"""How it is started, its own exit code when our process ends with 2, and how to install it."""

ONE: list[Command] = [
    [BIN / "torchrun", "--standalone", "--nproc-per-node", 1, "-m"],
    [BIN / "accelerate", "launch", "--cpu", "--num_processes", 1, "-m"],
    [BIN / "mpiexec", "-n", 1, sys.executable, "-m"],
    ["srun", "-n1", sys.executable, "-m"],
]
"""Each starting one process."""


@pytest.fixture
def launcher(request: pytest.FixtureRequest) -> Launcher:
    """The launcher of that name, or the reason why it is not here."""
    start, _, install = LAUNCHERS[request.param]
    if request.param == "srun":
        request.getfixturevalue("cluster")
    elif install and not (BIN / request.param).exists():
        pytest.skip(f"no {request.param} beside this Python: {install}")
    return start


def marked(*cases: tuple[str, ...]) -> list:
    return [pytest.param(*case, marks=pytest.mark.slurm if case[0] == "srun" else (), id="-".join(map(str, case))) for case in cases]


def run(commands: list[Command], **environ: str) -> list[tuple[int, str]]:
    """Start the commands beside each other; exit code and everything said, of each."""
    environ = {**os.environ, "OMP_NUM_THREADS": "1", "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}", **environ}
    begun = [
        subprocess.Popen(
            [*map(str, command)], cwd=ROOT, env=environ, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
        )
        for command in commands
    ]
    try:
        said = [process.communicate(timeout=200)[0] for process in begun]
        return [(process.returncode, text) for process, text in zip(begun, said, strict=True)]
    finally:
        for process in begun:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)


@pytest.fixture(scope="module")
def trained(packed: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable]:
    """Two ranks of a launcher train a tiny VQ-GAN, each launcher and mode once: (curve without clocks, sha256 of each rank's part)."""
    folder = tmp_path_factory.mktemp("launchers")
    (folder / "tiny.yaml").write_text(yaml.safe_dump({"vqgan": TINY, "data": {"dataset": str(packed)}}))
    (folder / "hosts").write_text("127.0.0.1 slots=1\nlocalhost slots=1\n")

    @functools.cache
    def train(start: Launcher, mode: str) -> tuple[list[dict[str, float]], list[list[str]]]:
        place = folder / f"{start.__name__}-{mode}"
        words = ["train", "vqgan", folder / "tiny.yaml", f"run={place}", "--hostfile", folder / "hosts"]
        for code, said in run(start(words, mode, folder / "hosts")):
            assert code == 0, said[-3000:]
        rows = [json.loads(line) for line in (place / "vqgan" / "metrics.jsonl").read_text().splitlines()]
        commit = json.loads((place / "vqgan" / "checkpoints" / "samples-000000000016" / "COMMIT.json").read_text())
        assert commit["world"] == 2 == len({name.partition(".")[0] for name, _ in commit["parts"]})
        return [{key: value for key, value in row.items() if not key.startswith(TIMINGS)} for row in rows], commit["parts"]

    yield train


@pytest.mark.slow
@pytest.mark.parametrize(
    ("launcher", "mode"),
    marked(
        ("deepspeed", "ddp"),
        ("mpiexec", "ddp"),
        ("srun", "ddp"),
        ("accelerate", "zero2"),
        *([("accelerate", "ddp"), ("deepspeed", "zero2")] if os.environ.get("FAULTS") == "all" else []),
    ),
    indirect=["launcher"],
)
def test_every_launcher_trains_what_torchrun_trains(trained: Callable, launcher: Launcher, mode: str) -> None:
    """Bit for bit: the curve, and the sha256 of weights and optimizer states of every rank."""
    if mode == "zero2":
        pytest.importorskip("deepspeed", reason="pip install -c constraints.txt -e '.[deepspeed]'")
    (curve, parts), (expected_curve, expected_parts) = trained(launcher, mode), trained(torchrun, mode)
    assert len(curve) == 2 and "gan/adaptive_weight" in curve[1], "the discriminator was not at work"
    assert curve == expected_curve
    assert parts == expected_parts


@pytest.mark.slow
def test_one_local_process_trains_also_as_a_stage_of_a_pipeline(packed: Path, tmp_path: Path, monkeypatch) -> None:
    """`submit --local`, whose default is one process; the stages run here in order, and a finished one is passed over."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "none"))
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump({"run": "runs/tiny", "vqgan": TINY, "data": {"dataset": str(packed)}}))
    (tmp_path / "pipeline.yaml").write_text(yaml.safe_dump({"preset": "tiny.yaml"}))
    for name in set(STAGES) - {"data", "vqgan"}:
        monkeypatch.delitem(STAGES, name)
    invoke("submit", "--local", "--", "pipeline", "pipeline.yaml")
    assert (tmp_path / "runs/tiny/vqgan/checkpoints/samples-000000000016/COMMIT.json").exists()


@pytest.mark.slurm
@pytest.mark.skipif(os.environ.get("FAULTS") != "all", reason="make faults runs it: each is a training")
@pytest.mark.parametrize("one", ONE, ids=lambda one: Path(one[0]).name)
def test_every_launcher_starts_one_process(cluster, packed: Path, tmp_path: Path, one: Command) -> None:
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump({"vqgan": TINY, "data": {"dataset": str(packed)}}))
    [(code, said)] = run([[*one, "launch", "train", "vqgan", tmp_path / "tiny.yaml", f"run={tmp_path}/run"]])
    assert code == 0, said[-3000:]


@pytest.mark.parametrize(("launcher", "code"), marked(*((name, code) for name, (_, code, _) in LAUNCHERS.items())), indirect=["launcher"])
def test_a_hostfile_of_another_world_is_refused_under_every_launcher(launcher: Launcher, code: int, tmp_path: Path) -> None:
    """Our exit code is 2; torchrun and accelerate end with 1 and report it."""
    (tmp_path / "hosts").write_text("127.0.0.1 slots=1\nlocalhost slots=1\n")
    (tmp_path / "three").write_text("127.0.0.1 slots=3\n")
    words = ["train", "vqgan", "demo", f"run={tmp_path}/run", "--hostfile", tmp_path / "three"]
    for came, said in run(launcher(words, "ddp", tmp_path / "hosts")):
        assert came == code, said[-3000:]
        assert "started 2 process(es), but the hostfile has 3 slot(s)" in said
        assert code == 2 or "exitcode  : 2 " in said
    assert not (tmp_path / "run").exists()


@pytest.mark.skipif(not (BIN / "mpiexec").exists(), reason="no mpiexec beside this Python: pip install -c constraints.txt -e '.[mpi]'")
def test_launchers_that_contradict_each_other_are_refused(tmp_path: Path) -> None:
    """Two agents of torchrun, each with a worker that believes to be alone: one run twice in one folder."""
    lonely = [BIN / "torchrun", "--standalone", "--nproc-per-node", 1, "-m", "launch", "train", "vqgan", "demo", f"run={tmp_path}/run"]
    [(code, said)] = run([[BIN / "mpiexec", "-n", 2, *lonely]])
    assert code == 1 and "exitcode  : 2 " in said, said[-3000:]
    assert "torchrun says rank 0 of 1, mpi says rank" in said and "2 copies of 1 process(es)" in said
    assert not (tmp_path / "run").exists()


def test_ranks_that_cannot_meet_end_at_once(tmp_path: Path) -> None:
    """An address that does not resolve is wrong input; a rank 0 that does not come may come another time."""
    alone = [[sys.executable, "-m", "launch", "train", "vqgan", "demo", f"run={tmp_path}/run", "vqgan.engine.timeout_minutes=0.02"]]
    rank_1 = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "MASTER_PORT": str(free_port())}
    [(code, said)] = run(alone, **rank_1, MASTER_ADDR="no-such-host.invalid")
    assert code == 2 and "MASTER_ADDR=no-such-host.invalid does not resolve" in said, said[-3000:]
    [(code, said)] = run(alone, **rank_1, MASTER_ADDR="127.0.0.1")
    assert code == 75 and "the ranks did not meet" in said, said[-3000:]
    assert not (tmp_path / "run").exists()


def test_a_plan_for_a_hostfile(tmp_path: Path) -> None:
    (tmp_path / "hosts").write_text("worker-1.invalid slots=2\nworker-2.invalid slots=2\n")
    words = [sys.executable, "-m", "launch", "train", "vqgan", "demo", "vqgan.loop.batch=8", "--dry-run", "--hostfile", tmp_path / "hosts"]
    [(code, said)] = run([words])
    assert code == 0 and "× world 4" in said, said[-3000:]
    [(code, said)] = run([words], WORLD_SIZE="2")
    assert code == 2 and "WORLD_SIZE=2, but the hostfile has 4 slot(s)" in said
