"""Every guard is needed: taken out of a copy of the source, one by one, each makes a test fail.

`make test` takes out a few of each kind, whose tests are quick; `make faults` all.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ALL = os.environ.get("FAULTS") == "all"
COPIED = ("data_shards", "ldm", "slurm", "launch", "tests")
COMMITTED, ATTEMPTS, TRIED = "ldm/checkpoints/commit.py", "slurm/attempts.py", "tests/slurm/test_attempts.py"
STATES = "tests/slurm/test_status.py"
CHECKPOINT, LOOP, VQGAN = "ldm/checkpoints/store.py", "ldm/training/loop.py", "ldm/training/vqgan.py"
STATE, POWER = "tests/ldm/checkpoints/test_checkpoint.py", "tests/faults/test_power_loss.py"
SPLITS, VERIFY = "tests/data_shards/packing/test_splits.py", "data_shards/packing/verify.py"
STRIPED, STRIPES = "ldm/models/striped.py", ("tests/ldm/models/test_striped.py", "any_height")
DECODE, DECODED = "ldm/generation/decode.py", "tests/ldm/generation/test_decode.py"
STOP, LOST, ZERO = "tests/faults/test_agreement.py", "tests/faults/test_lost_rank.py", "tests/launch/test_zero.py"


@dataclass(frozen=True)
class Guard:
    """One guard, and the test that misses it.

    Attributes:
        file, changes: what is replaced by what in which file; each text stands there once.
        test: file and words for `pytest -k`.
    """

    name: str
    file: str
    changes: tuple[tuple[str, str], ...]
    test: tuple[str, str]


def guard(name: str, file: str, old: str, new: str, *test: str) -> Guard:
    return Guard(name, file, ((old, new),), (*test, "")[:2])


BY_AUTOGRAD = (
    ("        leaf = rec_BCHW.detach()", "        self.through = rec_BCHW\n        leaf = rec_BCHW.detach()"),
    (
        "[last_layer_gradient(trunk_BFHW, g * inside, self.last_layer_shape) for g in at_output]",
        "[torch.autograd.grad(self.through, self.module.last_layer.weight, g, retain_graph=True)[0] for g in at_output]",
    ),
)
GUARDS = [
    guard("hash of a part", COMMITTED, "elif durable.sha256_of(path) != sha256:", "elif False:", STATE),
    guard("digest of a commit", COMMITTED, " or sha256 != digest_of(commit)", "", STATE),
    guard("names of parts", COMMITTED, " if PART.fullmatch(name)", "", STATE),
    guard(
        "limit of restarts asked for",
        ATTEMPTS,
        "        refused = stalled(",
        "        refused = None and stalled(",
        TRIED,
        "without_progress",
    ),
    guard("limit of restarts by SLURM", ATTEMPTS, "if why := stalled(spec,", "if why := None and stalled(spec,", TRIED, "without_progress"),
    guard("an elder copy asks for nothing", ATTEMPTS, "spec.requeue and not elder and", "spec.requeue and", TRIED, "taken_over_asks"),
    guard(
        "an index of an array by its own number",
        "slurm/restart.py",
        'return f"{array}_{index}" if array and index else environ["SLURM_JOB_ID"]',
        'return environ["SLURM_JOB_ID"]',
        TRIED,
        "only_the_index",
    ),
    guard(
        "the token of a job",
        "slurm/states.py",
        "if state.token and state.token == self.record.token",
        "if state.token",
        STATES,
        "given_again",
    ),
    guard("what is unknown is not doubled", "slurm/states.py", "if is_unknown(states) and not force:", "if False:", STATES, "by_force"),
    guard(
        "an elder copy ends itself",
        "slurm/preempt.py",
        "if superseded and superseded():",
        "if False:",
        TRIED,
        "taken_over_ends",
    ),
    guard(
        "safetensors only",
        "ldm/checkpoints/parts.py",
        "except (SafetensorError, OSError) as error:",
        "except ZeroDivisionError as error:",
        STATE,
    ),
    guard("order within a removal", CHECKPOINT, "        (folder / COMMIT).unlink(missing_ok=True)\n", "", STATE),
    guard("progress without a checkpoint", CHECKPOINT, "if faults or self.comm.broadcast(progress_exists):", "if False:", STATE),
    guard(
        "barrier before anyone writes",
        CHECKPOINT,
        "on_rank_0(self.comm, lambda: _make_place(final))",
        "self.comm.rank or _make_place(final)",
        STATE,
    ),
    guard("barrier before the commit", CHECKPOINT, "self.comm.gather(on_each(self.comm, writing.result))", "[writing.result()] * 2", POWER),
    guard("fsync of a file", "data_shards/durable.py", "                os.fsync(file.fileno())\n", "", POWER),
    guard(
        "fsync after a rename", "data_shards/durable.py", "            fsync_path(final.parent)\n        except", "        except", POWER
    ),
    guard("fsync of new folders", "data_shards/durable.py", "        fsync_path(folder.parent)\n", "        pass\n", POWER),
    guard("fsync of a folder's files", "data_shards/durable.py", "fsync_path(Path(root) / name)", "pass", POWER),
    guard("fsync of a folder's names", "data_shards/durable.py", "            fsync_path(Path(root))\n", "", POWER),
    guard(
        "fsync of a published folder",
        "data_shards/durable.py",
        "        os.rename(part, final)\n        fsync_path(final.parent)\n",
        "        os.rename(part, final)\n",
        POWER,
    ),
    guard(
        "a file beside its place",
        "data_shards/durable.py",
        "        part = part_name(final)\n        try:",
        "        part = final\n        try:",
        POWER,
    ),
    guard("identity of a checkpoint", LOOP, "if json.loads(json.dumps(mine)) != theirs:", "if False:", "tests/ldm/training/test_loop.py"),
    guard("the log is cut", LOOP, "    log.cut(checkpoint.samples)\n", "", "tests/ldm/training/test_loop.py"),
    guard(
        "the world that came up",
        "ldm/training/engine/start.py",
        'if accelerator.num_processes != world or zero != mode.startswith("zero") or (not zero and several != (world > 1)):',
        "if False:",
        "tests/ldm/training/test_engine.py",
    ),
    guard(
        "agreement on stopping",
        LOOP,
        "engine.any_rank(stop(), store.writing)",
        "(stop(), store.writing)",
        STOP,
        "SIGTERM-1-ddp",
    ),
    Guard("leaf gradients", VQGAN, BY_AUTOGRAD, (ZERO, "what_one_process and vqgan and zero3")),
    guard("agreement on skipping", LOOP, "(skipped,) = engine.any_rank(not finite)", "skipped = not finite", STOP, "finite"),
    guard(
        "a step left out under ZeRO",
        "ldm/training/engine/zero.py",
        "return None if self.held else super().step(closure)",
        "return super().step(closure)",
        STOP,
        "finite",
    ),
    guard(
        "sums of the codebook",
        VQGAN,
        "statistics = self.engine.comm.all_reduce_sum_(statistics)",
        "pass",
        ZERO,
        "what_one_process and vqgan and ddp",
    ),
    guard(
        "gradients at the last layer, summed",
        VQGAN,
        "self.engine.comm.all_reduce_sum_(at_weight) / self.engine.world",
        "at_weight",
        ZERO,
        "what_one_process and vqgan and ddp",
    ),
    guard(
        "one training a folder",
        "launch/stages/training.py",
        "    on_rank_0(engine.comm, lambda: held.enter_context(claim))\n",
        "",
        LOST,
        "two_trainings",
    ),
    guard("silence", "ldm/training/engine/watchdog.py", "if silent_s > SILENT_S:", "if False:", LOST, "SIGSTOP-1-ddp"),
    guard(
        "hanging",
        "ldm/training/engine/watchdog.py",
        "return self.clock() - self.since > max(",
        "return False and max(",
        LOST,
        "forward-1-ddp",
    ),
    guard("one person in one split", VERIFY, "if split_of.setdefault(subject, entry.split) != entry.split:", "if False:", SPLITS, "verify"),
    guard("one sample once", VERIFY, "            if key in keys:\n", "            if False:\n", SPLITS, "verify"),
    guard("one picture in one split", VERIFY, "doubles.add(entry, index) if index and not faults else ()", "()", SPLITS, "picture"),
    guard("seed of a split", "data_shards/packing/splits.py", "{SALT}\\0{seed}\\0{subject}", "{SALT}\\0{subject}", SPLITS, "seed"),
    guard(
        "seed of a crop",
        "data_shards/reading/stream.py",
        "hash64(self.seed, sample_KB, epoch_KB, 0x63726F70, axis)",
        "hash64(0, sample_KB, epoch_KB, 0x63726F70, axis)",
        "tests/data_shards/reading/test_stream.py",
        "crop_lies",
    ),
    guard(
        "seed of a mixture",
        "data_shards/reading/mixture.py",
        "int(hash64(seed, 0x6D6978) >>",
        "int(hash64(0, 0x6D6978) >>",
        "tests/data_shards/reading/test_mixture.py",
        "the_seed",
    ),
    guard(
        "seed of a mixture's parts",
        "data_shards/reading/mixture.py",
        "int(hash64(seed, d) >>",
        "int(hash64(0, d) >>",
        "tests/data_shards/reading/test_mixture.py",
        "order_each",
    ),
    guard("rows of the next stripe", STRIPED, "after[:, :, :below]", "torch.zeros_like(after[:, :, :below])", *STRIPES),
    guard("moments of the whole frame", STRIPED, "(count_SG * moment).sum(0) / count_SG.sum(0)", "moment[0]", *STRIPES),
    guard("the decoder whose codes they are", DECODE, "if digest != autoencoder.digest:", "if False:", DECODED, "another_decoder"),
    guard(
        "batches that were generated", DECODE, "[torch.arange(batch, device=index_Bhw.device) % len(index_Bhw)]", "", DECODED, "each_shard"
    ),
    guard("rounding of an earlier set", "ldm/generation/standing.py", ', "straight_through": True}', "}", DECODED, "its_rounding"),
]


SAMPLE = {
    "hash of a part",
    "barrier before anyone writes",
    "fsync of a file",
    "identity of a checkpoint",
    "limit of restarts asked for",
    "an elder copy asks for nothing",
}


@pytest.mark.parametrize("taken", [g for g in GUARDS if g.name in SAMPLE or ALL], ids=lambda g: g.name.replace(" ", "-"))
def test_without_it_a_test_fails(taken: Guard, tmp_path: Path) -> None:
    for name in COPIED:
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "setup.cfg", tmp_path)
    path = tmp_path / taken.file
    text = path.read_text()
    for old, new in taken.changes:
        assert text.count(old) == 1, f"{taken.file}: {old!r} stands there {text.count(old)} times; has the guard moved?"
        text = text.replace(old, new)
    path.write_text(text)
    file, words = taken.test
    command = [sys.executable, "-m", "pytest", "-q", "-x", "--tb=line", "-p", "no:cacheprovider", "--timeout=60", file]
    done = subprocess.run([*command, "-k", words], cwd=tmp_path, capture_output=True, text=True, timeout=400, check=False)
    assert done.returncode == 1 and re.search(r"\d+ (failed|error)", done.stdout), done.stdout[-3000:] + done.stderr[-1000:]
