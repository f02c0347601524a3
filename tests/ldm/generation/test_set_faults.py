"""Bad input and damage that a set meets, as in the table of docs/bulk.md: a clear error, nothing lost, nothing made twice."""

from __future__ import annotations

import errno
import json
import os
import re
import shlex
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from data_shards import durable
from data_shards.errors import CorruptData, InputError, RetinaforgeError, TryAgain
from data_shards.ledger import LEASE, Ledger, holders
from data_shards.manifest import Manifest, read_manifest
from data_shards.packing.verify import verify
from launch.work import work
from ldm.generation import images
from ldm.generation.gate import Gate, envelope_of
from ldm.generation.generate import SyntheticSet
from ldm.generation.images import Generator
from tests.ldm.generation.test_generate import Painter, files, painter
from tests.users import as_nobody, open_way_to

COUNT, SHARD = 16, 4
DEEP = b"[" * 100_000


@pytest.fixture(autouse=True)
def painted(monkeypatch: pytest.MonkeyPatch) -> None:
    """The networks: an image of noise that depends on nothing but its number, for a shard to have a size that disks know."""
    monkeypatch.setattr(images, "latents_of", lambda _, ids, **how: torch.from_numpy(ids))


def the_set(out: Path, generator: Generator | None = None, *, count: int = COUNT, shard: int = SHARD) -> SyntheticSet:
    return SyntheticSet(generator or painter(4), out, count=count, shard=shard)


def made(units: SyntheticSet, still_s: float = 60.0) -> Manifest:
    """Made as the stage makes it."""
    with units:
        work(units, Ledger(units.out, still_s=still_s, beat_s=still_s / 10), poll_s=0.02)
        return units.finish()


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A set that nothing happened to."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(images, "latents_of", lambda _, ids, **how: torch.from_numpy(ids))
        out = tmp_path_factory.mktemp("once") / "set"
        made(the_set(out))
    return out


@pytest.fixture
def once(whole: Path) -> dict[str, bytes]:
    """Its files."""
    return files(whole)


@pytest.fixture
def finished(whole: Path, tmp_path: Path) -> Path:
    """The same once more."""
    return Path(shutil.copytree(whole, tmp_path / "set"))


@pytest.fixture
def unfinished(finished: Path) -> Path:
    """All shards but the last, as a kill leaves them."""
    (finished / "dataset.json").unlink()
    for path in finished.glob("synthetic-000003.*"):
        path.unlink()
    return finished


ENVELOPE = envelope_of(np.random.default_rng(0).normal(0.1, 0.02, (200, 2)), np.zeros(200), dataset="d", people=50)
OTHERS: dict[str, Callable[[Generator], Generator]] = {
    "seed": lambda g: replace(g, seed=1),
    "steps": lambda g: replace(g, sampler=replace(g.sampler, steps=3)),
    "sampler": lambda g: replace(g, sampler=replace(g.sampler, name="flow-heun")),
    "quantise": lambda g: replace(g, quantise=False),
    "gate": lambda g: replace(g, gate=Gate.of(ENVELOPE, 0.05, g.autoencoder)),
    "denoiser": lambda g: replace(g, denoiser=other_digest(g.denoiser, "n2")),
    "autoencoder": lambda g: replace(g, autoencoder=other_digest(g.autoencoder, "b"), denoiser=other_autoencoder(g.denoiser, "b")),
}


def other_digest(painter: Painter, digest: str) -> Painter:
    other = Painter()
    other.digest = digest
    return other


def other_autoencoder(painter: Painter, digest: str) -> Painter:
    other = Painter()
    other.autoencoder = digest
    return other


@pytest.mark.parametrize("how_far", ["finished", "unfinished"])
@pytest.mark.parametrize("what", [*OTHERS, "shard"])
def test_a_set_begun_with_other_settings_says_which_and_stays_as_it_is(request: pytest.FixtureRequest, what: str, how_far: str) -> None:
    out = request.getfixturevalue(how_far)
    before = files(out)
    other = painter(4) if what == "shard" else OTHERS[what](painter(4))
    with pytest.raises(InputError, match=rf"another request stands here \({what} ") as refused:
        the_set(out, other, shard=2 if what == "shard" else SHARD)
    assert refused.value.mend and "mv" in refused.value.mend
    assert files(out) == before


def test_of_two_requests_at_one_moment_the_first_to_be_written_down_counts(tmp_path: Path) -> None:
    """Both look before either writes; four times over."""
    for k in range(4):
        out, ends = tmp_path / str(k), []
        both = [the_set(out, painter(4, seed)) for seed in (0, 1)]
        together = threading.Barrier(2)

        def enter(units: SyntheticSet, together: threading.Barrier = together, ends: list[str] = ends) -> None:
            together.wait()
            try:
                made(units)
                ends.append("made")
            except InputError as error:
                ends.append(error.what)

        threads = [threading.Thread(target=enter, args=(units,)) for units in both]
        [thread.start() for thread in threads]
        [thread.join() for thread in threads]
        assert sorted(end.partition("(")[0] for end in ends) == ["a set of another request stands here ", "made"], ends
        assert not list(out.glob(f"{durable.PART}*"))


@pytest.fixture
def full_disk(tiny_disk: Path) -> Iterator[tuple[Path, Callable[[], None]]]:
    """A folder of a disk on which a shard has no room, and what makes room."""
    ballast = tiny_disk / "ballast"
    with pytest.raises(OSError, match="No space left"), open(ballast, "wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))
    os.truncate(ballast, ballast.stat().st_size - 5 * 4096)  # for the request, a lease, and a part of a shard
    return tiny_disk / "set", ballast.unlink


def test_a_full_disk_is_said_leaves_no_part_and_is_gone_on_with_once_there_is_room(full_disk, once: dict[str, bytes]) -> None:
    out, make_room = full_disk
    for _ in range(2):
        with pytest.raises(TryAgain, match="No space left") as full:
            made(the_set(out))
        assert full.value.exit_code == 75 and "df -h" in full.value.mend
        assert not [path.name for path in out.iterdir() if durable.PART in path.name or path.name.startswith(LEASE)]
    make_room()
    made(the_set(out))
    assert files(out) == once


def test_a_disk_that_fills_up_while_a_shard_is_made_leaves_no_part_of_a_lease(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither as it is taken, nor as its holder counts."""

    def full(path: Path, content: bytes) -> int:
        path.touch()
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    held = Ledger(tmp_path, beat_s=0.01)
    with held.lease("a"):
        monkeypatch.setattr(Path, "write_bytes", full)
        with pytest.raises(TryAgain), held.lease("b"):
            pass
        threading.Event().wait(0.1)
    assert not list(tmp_path.iterdir())


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0x40
    path.write_bytes(content)


def junk(path: Path) -> None:
    path.write_bytes(bytes(range(256)))


def empty(path: Path) -> None:
    path.write_bytes(b"")


DAMAGES = [cut, junk, empty]


@pytest.mark.parametrize(("suffix", "damage"), [*(("tar", how) for how in DAMAGES), *(("index", how) for how in (*DAMAGES, flip))])
def test_a_damaged_shard_or_index_is_said_and_the_others_are_made_first(
    tmp_path: Path, unfinished: Path, once: dict[str, bytes], suffix: str, damage: Callable
) -> None:
    out = unfinished
    damage(out / f"synthetic-000001.{suffix}")
    with pytest.raises(CorruptData, match="unit synthetic-000001 failed: (a finished shard of|the index of)") as corrupt:
        made(the_set(out))
    assert corrupt.value.exit_code == 4 and (out / "synthetic-000003.unit").exists() and not (out / "dataset.json").exists()
    for suffix in ("tar", "index", "unit"):  # as the advice says
        shutil.move(out / f"synthetic-000001.{suffix}", tmp_path)
    made(the_set(out))
    assert files(out) == once


def test_a_shard_altered_at_its_size_is_found_by_verify(unfinished: Path) -> None:
    out = unfinished
    flip(out / "synthetic-000001.tar")
    made(the_set(out))
    found = {name: faults for name, faults in verify(out) if faults}
    assert list(found) == ["synthetic-000001.tar"] and re.search("crc32c|sha256", found["synthetic-000001.tar"][0]), found


@pytest.mark.parametrize("content", [b"", b'{"format"', b"[]", b"null", b"{}", DEEP, b'{"format": 1}', b"\xff\xfe"])
def test_a_record_that_is_no_record_is_made_anew(unfinished: Path, once: dict[str, bytes], content: bytes) -> None:
    out = unfinished
    (out / "synthetic-000001.unit").write_bytes(content)
    made(the_set(out))
    assert files(out) == once


def test_a_record_whose_notes_are_none_is_made_anew(unfinished: Path, once: dict[str, bytes]) -> None:
    record = unfinished / "synthetic-000001.unit"
    record.write_text(json.dumps({**json.loads(record.read_bytes()), "notes": ["batch"]}))
    made(the_set(unfinished))
    assert files(unfinished) == once


def test_a_record_that_this_user_may_not_read_is_said(unfinished: Path, reachable: None) -> None:
    (unfinished / "synthetic-000001.unit").chmod(0)
    with as_nobody(), pytest.raises(InputError, match="cannot be read: Permission denied"):
        the_set(unfinished).published(1)


def test_a_shard_that_lost_its_record_and_was_altered_is_not_described_anew(unfinished: Path, once: dict[str, bytes]) -> None:
    (unfinished / "synthetic-000001.unit").unlink()
    flip(unfinished / "synthetic-000001.tar")
    with pytest.raises(CorruptData, match="not those that its index was written for") as corrupt:
        made(the_set(unfinished))
    follow(corrupt.value)
    made(the_set(unfinished))
    assert files(unfinished) == once


def test_the_record_of_another_shard_is_none_of_this_one(unfinished: Path, once: dict[str, bytes]) -> None:
    out = unfinished
    shutil.copy(out / "synthetic-000000.unit", out / "synthetic-000001.unit")
    made(the_set(out))
    assert files(out) == once


def remove(path: Path) -> None:
    path.unlink()


def follow(error: CorruptData) -> None:
    """Do as the advice says that does not ask for a copy."""
    subprocess.run(shlex.split(error.mend.partition("; or ")[2].partition(", and ")[0]), check=True)


@pytest.mark.parametrize("damage", [cut, empty, remove])
def test_a_finished_set_whose_shard_is_gone_or_cut_is_not_said_to_be_done(finished: Path, once: dict[str, bytes], damage: Callable) -> None:
    out = finished
    damage(out / "synthetic-000001.tar")
    before = files(out)
    with pytest.raises(CorruptData, match="synthetic-000001") as corrupt:
        made(the_set(out))
    assert files(out) == before, "nothing is written"
    for name in ("dataset.json", "synthetic-000001.tar", "synthetic-000001.index", "synthetic-000001.unit"):  # as the advice says
        assert name.rpartition(".")[0] in corrupt.value.mend
        (out / name).unlink(missing_ok=True)
    made(the_set(out))
    assert files(out) == once


def test_all_damaged_shards_of_a_finished_set_are_named_at_once(finished: Path, once: dict[str, bytes]) -> None:
    (finished / "synthetic-000000.tar").unlink()
    (finished / "synthetic-000002.tar").write_bytes(b"")
    with pytest.raises(CorruptData, match="000000.tar of a finished set is gone, and 1 more of its 4 shards") as corrupt:
        made(the_set(finished))
    follow(corrupt.value)
    made(the_set(finished))
    assert files(finished) == once


def test_a_finished_set_without_a_request_loses_no_word_of_what_it_is_by_the_advice(finished: Path, once: dict[str, bytes]) -> None:
    (finished / "request.json").unlink()
    (finished / "synthetic-000001.tar").unlink()
    with pytest.raises(CorruptData, match="is gone") as corrupt:
        made(the_set(finished))
    follow(corrupt.value)
    made(the_set(finished))
    assert files(finished) == once
    (finished / "request.json").unlink()
    (finished / "dataset.json").write_bytes(b"{")
    with pytest.raises(CorruptData) as corrupt:
        made(the_set(finished))
    assert corrupt.value.mend == "copy it back", "nothing else says what the shards hold"


def test_a_finished_set_that_lost_an_index_is_not_said_to_be_done(finished: Path, once: dict[str, bytes]) -> None:
    (finished / "synthetic-000002.index").unlink()
    with pytest.raises(CorruptData, match="000002.tar of a finished set has lost its index") as corrupt:
        made(the_set(finished))
    follow(corrupt.value)
    made(the_set(finished))
    assert files(finished) == once


def test_a_set_does_not_grow_over_a_shard_that_was_made_again_in_other_batches_and_the_advice_helps(tmp_path: Path) -> None:
    out = tmp_path / "set"
    made(the_set(out, count=8))
    for path in out.glob("synthetic-000001.*"):
        path.unlink()
    with pytest.raises(CorruptData, match=r"000001.tar is not the one of the finished set") as corrupt:
        made(the_set(out, painter(2)))
    follow(corrupt.value)
    assert made(the_set(out, painter(2))).splits["synthetic"]["count"] == COUNT
    assert not [fault for _, faults in verify(out) for fault in faults]


def test_of_two_who_finish_a_smaller_and_a_larger_set_at_once_the_larger_one_stands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first clears up while the second would be writing its manifest."""
    out, clears, sweep, publish = tmp_path / "set", threading.Event(), durable.sweep_published, durable._publish
    for count in (8, COUNT):
        with the_set(out, count=count) as units:
            work(units, Ledger(out), poll_s=0.02)
    smaller, larger = the_set(out, count=8), the_set(out)

    def sweeps(folder: Path) -> None:
        clears.set()
        time.sleep(0.5)
        sweep(folder)

    def publishes(part: Path, final: Path, keep_first: bool) -> None:
        if clears.is_set() and final.name == "dataset.json":
            time.sleep(1)
        publish(part, final, keep_first)

    monkeypatch.setattr(durable, "sweep_published", sweeps)
    monkeypatch.setattr(durable, "_publish", publishes)
    finishes = threading.Thread(target=smaller.finish)
    finishes.start()
    assert clears.wait(10)
    assert larger.finish().splits["synthetic"]["count"] == COUNT == read_manifest(out).splits["synthetic"]["count"]
    finishes.join()


@pytest.mark.parametrize("damage", [*DAMAGES, flip])
def test_a_damaged_manifest_is_made_anew_as_the_advice_says(finished: Path, once: dict[str, bytes], damage: Callable) -> None:
    damage(finished / "dataset.json")
    with pytest.raises(CorruptData) as corrupt:
        made(the_set(finished))
    follow(corrupt.value)
    made(the_set(finished))
    assert files(finished) == once


@pytest.mark.parametrize("content", [b"", b"{", b"null", b"[]", b"\xff", DEEP])
def test_a_damaged_request_is_said_and_nothing_is_written(unfinished: Path, content: bytes) -> None:
    out = unfinished
    (out / "request.json").write_bytes(content)
    before = files(out)
    with pytest.raises(CorruptData, match=r"what the set was asked for") as corrupt:
        made(the_set(out))
    assert "mv" in corrupt.value.mend and files(out) == before


@pytest.mark.parametrize("content", [b"", b"\0", b"x", b"{", "own", "dead"])
def test_a_lease_that_says_nothing_or_names_this_very_process_is_taken_over_when_it_stands_still(
    unfinished: Path, once: dict[str, bytes], content: bytes | str
) -> None:
    """Hosts and pids are given again: who holds a lease is known by its token alone."""
    out = unfinished
    pid = {"own": os.getpid(), "dead": 1 << 22}.get(content)
    (out / f"{LEASE}synthetic-000003").write_bytes(f"{'ab' * 8} 3 {socket.gethostname()}:{pid}\n".encode() if pid else content)
    assert list(holders(out)) == ["synthetic-000003"]
    made(the_set(out), still_s=0.1)
    assert files(out) == once


def test_a_lease_that_cannot_be_read_holds_nobody(unfinished: Path, once: dict[str, bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    out = unfinished
    lease = out / f"{LEASE}synthetic-000003"
    lease.write_text("another user's")
    real = Path.read_bytes

    def read(path: Path) -> bytes:
        if path == lease and (content := real(path)) == b"another user's":
            raise PermissionError(errno.EACCES, f"not yours: {content!r}")
        return real(path)

    monkeypatch.setattr(Path, "read_bytes", read)
    made(the_set(out), still_s=0.1)
    assert files(out) == once


def test_what_one_killed_while_it_took_or_counted_a_lease_left_goes_with_the_set(unfinished: Path, once: dict[str, bytes]) -> None:
    out = unfinished
    (out / f"{durable.PART}01234567-{LEASE}synthetic-000003").write_bytes(b"")
    made(the_set(out))
    assert files(out) == once


def test_a_gate_that_refuses_nearly_all_ends_it_at_the_first_image_and_leaves_nothing(tmp_path: Path) -> None:
    """The other shards would end like it: nobody waits for sixteen attempts at each."""
    out, tried = tmp_path / "set", []

    def latents(_: object, ids: np.ndarray, **how: object) -> torch.Tensor:
        tried.append(len(ids))
        return torch.from_numpy(ids)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(images, "latents_of", latents)
        generator = painter(4)
        gate = Gate.of(ENVELOPE, 0.999, generator.autoencoder)
        with pytest.raises(InputError, match=r"all of 16 attempts were refused \(16 for 'spectrum'\)") as refused:
            made(the_set(out, replace(generator, gate=gate), count=400))
    assert refused.value.exit_code == 2 and "sample.gate=0.001" in refused.value.mend
    assert len(tried) <= 16, "one shard was tried"
    assert [path.name for path in out.iterdir()] == ["request.json"]


@pytest.fixture
def reachable(tmp_path: Path) -> None:
    """Who is not root may come to the place of the test."""
    open_way_to(tmp_path)


def closed(out: Path, mode: int) -> None:
    for path in out.iterdir():
        path.chmod(mode & 0o666)
    out.chmod(mode)


@pytest.mark.parametrize("mode", [0o555, 0o500])
def test_an_unfinished_set_that_is_read_only_or_another_s_says_so_and_stays(unfinished: Path, reachable: None, mode: int) -> None:
    before = files(unfinished)
    closed(unfinished, mode)
    with as_nobody(), pytest.raises(RetinaforgeError, match=r"(cannot write|cannot be read): Permission denied") as refused:
        made(the_set(unfinished))
    assert refused.value.exit_code == 2
    unfinished.chmod(0o755)
    assert files(unfinished) == before


def test_a_finished_set_that_is_read_only_is_done(finished: Path, reachable: None) -> None:
    closed(finished, 0o555)
    with as_nobody():
        assert made(the_set(finished)) == read_manifest(finished)
    finished.chmod(0o755)


def test_a_finished_command_run_again_does_not_even_touch_the_folder(finished: Path) -> None:
    out = finished
    before = out.stat().st_mtime_ns
    made(the_set(out))
    assert out.stat().st_mtime_ns == before
