"""Stores: the same set read from a folder, memory://, a web server and an S3 server; retries, refusals, the cache of a node."""

from __future__ import annotations

import asyncio
import errno
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from data_shards import stores
from data_shards.errors import CorruptData, InputError, TryAgain
from data_shards.reading.dataset import Dataset
from data_shards.reading.stream import CubeStream
from data_shards.stores import cache as caching
from data_shards.stores import local, remote, retry
from data_shards.stores.cache import PIECE_BYTES, Cache

KEYS = {"aws_access_key_id": "a", "aws_secret_access_key": "b"}


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pauses of milliseconds between tries."""
    monkeypatch.setattr(retry, "PAUSES_S", (0.01, 0.02, 0.03))
    for module in (local, remote):
        monkeypatch.setattr(module, "retrying", lambda action, where: retry.retrying(action, where, retry.PAUSES_S))


def same_as(packed: Path, other: Dataset) -> None:
    mine = Dataset(packed)
    assert other.digest == mine.digest
    for split, info in mine.splits.items():
        for i in range(info.count):
            a, b = mine.cube(split, i), other.cube(split, i)
            assert a.meta == b.meta and np.array_equal(a.data_CHW, b.data_CHW) and np.array_equal(a.labels_HW, b.labels_HW)
    batches = [next(CubeStream(d, "train", batch_size=8, crop=(9, 7), seed=4).batches(16)) for d in (mine, other)]
    assert batches[0].keys == batches[1].keys
    assert np.array_equal(batches[0].cubes_BCHW.numpy(), batches[1].cubes_BCHW.numpy())


@pytest.fixture
def memory(packed: Path) -> Iterator[str]:
    import fsspec

    fs = fsspec.filesystem("memory")
    for path in packed.iterdir():
        fs.pipe(f"/set/{path.name}", path.read_bytes())
    yield "memory://set"
    fs.store.clear()


@pytest.fixture(scope="module")
def s3(packed: Path) -> Iterator[str]:
    moto = pytest.importorskip("moto.server", reason="the extra 'dev' is not installed")
    pytest.importorskip("s3fs", reason="the extra 's3' is not installed")
    import fsspec

    server = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    before = {name: os.environ.get(name) for name in ("FSSPEC_S3_ENDPOINT_URL", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")}
    os.environ |= {"FSSPEC_S3_ENDPOINT_URL": f"http://{host}:{port}", "AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b"}
    fsspec.config.set_conf_env(fsspec.config.conf)
    fs = fsspec.filesystem("s3")
    fs.mkdir("eyes")
    for path in packed.iterdir():
        fs.pipe(f"eyes/set/{path.name}", path.read_bytes())
    yield "s3://eyes/set"
    server.stop()
    fsspec.config.conf.clear()
    for name, value in before.items():
        os.environ.pop(name, None) if value is None else os.environ.update({name: value})


class Web:
    """A web server of a folder on this machine; `trouble` may answer a request otherwise."""

    def __init__(self, folder: Path) -> None:
        from aiohttp import web

        self.trouble: Callable[[str, int], web.Response | float | None] = lambda name, n: None
        self.requests: list[str] = []

        async def serve(request: web.Request) -> web.StreamResponse:
            name = request.match_info["name"]
            self.requests.append(name)
            said = self.trouble(name, len(self.requests))
            if isinstance(said, float):
                await asyncio.sleep(said)
            elif said is not None:
                return said
            return web.FileResponse(folder / name) if (folder / name).exists() else web.Response(status=404)

        self.loop, started = asyncio.new_event_loop(), threading.Event()

        async def start() -> None:
            app = web.Application()
            app.router.add_get("/set/{name}", serve)
            self.runner = web.AppRunner(app, shutdown_timeout=0.1)
            await self.runner.setup()
            site = web.TCPSite(self.runner, "127.0.0.1", 0)
            await site.start()
            self.url = f"http://127.0.0.1:{site._server.sockets[0].getsockname()[1]}/set"
            started.set()

        def run() -> None:
            self.loop.create_task(start())
            self.loop.run_forever()

        self.thread = threading.Thread(target=run, daemon=True)
        self.thread.start()
        assert started.wait(20)

    def close(self) -> None:
        async def end() -> None:
            await self.runner.cleanup()
            left = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
            for task in left:
                task.cancel()
            await asyncio.gather(*left, return_exceptions=True)

        asyncio.run_coroutine_threadsafe(end(), self.loop).result(20)
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join(20)
        self.loop.close()


@pytest.fixture
def web(packed: Path) -> Iterator[Web]:
    pytest.importorskip("aiohttp", reason="the extra 'dev' is not installed")
    server = Web(packed)
    yield server
    server.close()


def test_memory(packed: Path, memory: str) -> None:
    same_as(packed, Dataset(memory))


def test_an_s3_server(packed: Path, s3: str, tmp_path: Path) -> None:
    same_as(packed, Dataset(s3))
    same_as(packed, Dataset(s3, cache=Cache(tmp_path, 1 << 30)))
    with pytest.raises(InputError, match="no packed dataset"):
        Dataset("s3://eyes/nothing")


def test_a_web_server(packed: Path, web: Web, tmp_path: Path) -> None:
    same_as(packed, Dataset(web.url))
    cache = Cache(tmp_path, 1 << 30)
    same_as(packed, Dataset(web.url, cache=cache))
    before = len(web.requests)
    same_as(packed, Dataset(web.url, cache=cache))
    data = [name for name in web.requests[before:] if name.endswith(".tar")]
    shards = len(Dataset(packed).manifest.shards)
    assert cache.hits and len(data) <= 3 * shards, "shards are asked for their size alone"


def test_trouble_that_passes_is_tried_again(packed: Path, web: Web) -> None:
    from aiohttp import web as http

    web.trouble = lambda name, n: http.Response(status=503) if n % 3 else None
    same_as_first = Dataset(web.url).cube("train", 0)
    assert np.array_equal(same_as_first.data_CHW, Dataset(packed).cube("train", 0).data_CHW)
    assert len(web.requests) > 6


def test_a_store_that_stays_away_is_exit_75(web: Web) -> None:
    from aiohttp import web as http

    web.trouble = lambda name, n: http.Response(status=503)
    with pytest.raises(TryAgain, match="failed 4 times") as caught:
        Dataset(web.url)
    assert caught.value.exit_code == 75 and len(web.requests) >= 4


def test_a_store_that_denies_is_told_at_once(web: Web) -> None:
    from aiohttp import web as http

    web.trouble = lambda name, n: http.Response(status=403)
    with pytest.raises(InputError, match="denies access"):
        Dataset(web.url)
    assert len(web.requests) <= 2


def test_a_store_that_stalls_is_asked_again(packed: Path, web: Web, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stores, "RemoteStore", lambda url: remote.RemoteStore(url, stall_s=0.5))
    stalled = []
    web.trouble = lambda name, n: stalled.append(n) or 30.0 if name.endswith(".tar") and len(stalled) < 2 else None
    began = time.monotonic()
    cube = Dataset(web.url).cube("train", 0)
    assert np.array_equal(cube.data_CHW, Dataset(packed).cube("train", 0).data_CHW)
    assert len(stalled) == 2 and time.monotonic() - began < 20


def test_short_reads_are_asked_again_and_then_exit_75(packed: Path, memory: str, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = Dataset(memory)
    real, cut = dataset._store.fs.cat_file, []

    def short(path: str, start: int | None = None, end: int | None = None, **_) -> bytes:
        content = real(path, start=start, end=end)
        cut.append(path)
        return content[: len(content) // 2] if len(cut) % 2 or forever else content

    forever = False
    monkeypatch.setattr(dataset._store.fs, "cat_file", short)
    assert np.array_equal(dataset.cube("train", 0).data_CHW, Dataset(packed).cube("train", 0).data_CHW)
    forever = True
    with pytest.raises(TryAgain, match="short read"):
        dataset.cube("train", 1)


def test_a_server_without_ranges_is_refused(web: Web, packed: Path) -> None:
    from aiohttp import web as http

    web.trouble = lambda name, n: http.Response(body=(packed / name).read_bytes())
    with pytest.raises(InputError, match="range requests"):
        Dataset(web.url).cube("train", 1)


def test_what_network_file_systems_say_is_tried_again(packed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stale handle opens the file again; few bytes at a time are put together."""
    dataset, real, calls = Dataset(packed), os.preadv, []

    shard, row = dataset.locate("train", 3)
    out = np.empty(dataset.shape, np.uint16)

    def once_stale(fd: int, buffers: list, offset: int) -> int:
        calls.append(fd)
        if len(calls) == 1:
            raise OSError(errno.ESTALE, "Stale file handle")
        return real(fd, [buffers[0][:1000]], offset)

    monkeypatch.setattr(local.os, "preadv", once_stale)
    shard.array_into(row, out)
    monkeypatch.undo()
    assert np.array_equal(out, Dataset(packed).cube("train", 3).data_CHW) and len(calls) > 8


def test_a_pipe_and_unknown_urls_are_refused() -> None:
    for url, said in (("pipe:cat /etc/passwd", "runs a program"), ("pipe://cat", "runs a program"), ("nonsense://x", "kind of URL")):
        with pytest.raises(InputError, match=said):
            Dataset(url)


# --- the cache ------------------------------------------------------------------------------------------------------


class Counted:
    """A file in memory that counts what is read of it."""

    def __init__(self, content: bytes) -> None:
        self.content, self.size, self.reads = content, len(content), 0

    def read_into(self, buffer: memoryview, offset: int) -> int:
        self.reads += 1
        part = self.content[offset : offset + len(buffer)]
        buffer[: len(part)] = part
        return len(part)


def read(file: stores.CachedFile, offset: int, size: int) -> bytes:
    buffer = bytearray(size)
    return bytes(buffer[: file.read_into(memoryview(buffer), offset)])


def test_pieces_give_what_the_file_holds(tmp_path: Path) -> None:
    content = np.random.default_rng(0).bytes(2 * PIECE_BYTES + 777)
    file = Counted(content)
    cached = stores.CachedFile(file, Cache(tmp_path, 1 << 30), "ab" * 32)
    for offset, size in (
        (0, 10),
        (PIECE_BYTES - 5, 10),
        (0, len(content)),
        (len(content) - 3, 100),
        (len(content) + 5, 10),
        (PIECE_BYTES, 0),
    ):
        assert read(cached, offset, size) == content[offset : offset + size]
    assert file.reads == 3
    other = stores.CachedFile(file, Cache(tmp_path, 1 << 30), "ab" * 32)
    assert read(other, 0, len(content)) == content and file.reads == 3, "another process of this node"


def test_the_cache_stays_within_its_bound_and_the_oldest_go_first(tmp_path: Path) -> None:
    cache = Cache(tmp_path, 8 * PIECE_BYTES)
    for n in range(30):
        stores.CachedFile(Counted(bytes([n]) * PIECE_BYTES), cache, f"{n:02x}" * 32).read_into(memoryview(bytearray(10)), 0)
        held = [p for p in tmp_path.rglob("*") if p.is_file() and p.name != ".lock"]
        assert sum(p.stat().st_size for p in held) <= 9 * PIECE_BYTES
        os.utime(max(held, key=lambda p: p.stat().st_mtime_ns), (n, n))
    assert {p.name[:2] for p in held} <= {f"{n:02x}" for n in range(20, 30)}


def test_a_damaged_piece_is_fetched_again(packed: Path, memory: str, tmp_path: Path) -> None:
    dataset = Dataset(memory, cache=Cache(tmp_path, 1 << 30))
    whole = dataset.cube("train", 0).data_CHW
    for path in (p for p in tmp_path.rglob("*") if p.is_file() and p.stat().st_size > 100_000):
        content = bytearray(path.read_bytes())
        content[::512] = b"\0" * len(content[::512])
        path.write_bytes(content)
    assert np.array_equal(dataset.cube("train", 0).data_CHW, whole)
    same_as(packed, Dataset(memory, cache=Cache(tmp_path, 1 << 30)))


def test_damage_in_the_store_itself_is_named(memory: str, tmp_path: Path) -> None:
    import fsspec

    fs, dataset = fsspec.filesystem("memory"), Dataset(memory, cache=Cache(tmp_path, 1 << 30))
    shard, row = dataset.locate("train", 0)
    content = bytearray(fs.cat_file("/set/train-000000.tar"))
    content[int(shard.index.offset_NM[row, shard.index.payload(row)[0]]) + 9] ^= 1
    fs.pipe("/set/train-000000.tar", bytes(content))
    with pytest.raises(CorruptData, match="crc32c mismatch"):
        dataset.cube("train", 0)


def test_a_full_cache_disk_ends_caching_and_not_the_run(packed: Path, memory: str, tiny_disk: Path, caplog) -> None:
    cache = Cache(tiny_disk / "cache", 1 << 30)
    same_as(packed, Dataset(memory, cache=cache))
    assert "No space left" in cache.broken and sum("going on without this cache" in r.message for r in caplog.records) == 1
    assert not [p for p in tiny_disk.rglob("*") if p.name.startswith(caching.PART)]


def test_a_cache_that_cannot_be_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot make the cache"):
        Cache(tmp_path / "file" / "cache", 1 << 30).prepare()
    with pytest.raises(InputError, match="one piece"):
        Cache(tmp_path / "cache", 10)


def foreign_files(folder: Path) -> dict[Path, bytes]:
    """What others keep in a folder that is named as the cache: nothing of it may change."""
    named = "ab" * 32
    for name in ("project/model.pt", "ab/report.txt", f"ab/{named}-0", "retinaforge-pieces/mine/notes", "retinaforge-pieces/ab/notes.txt"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(bytes(1000))
    os.truncate(folder / "project/model.pt", 64 << 20)
    elsewhere = folder / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / f"{'cd' * 32}-0").write_bytes(bytes(PIECE_BYTES))
    (folder / "retinaforge-pieces" / "cd").symlink_to(elsewhere)
    (folder / "retinaforge-pieces" / "ab" / f"{named}-7").symlink_to(folder / "project/model.pt")
    (folder / "retinaforge-pieces" / "gone").symlink_to(folder / "nowhere")
    (folder / "retinaforge-pieces" / "ef").write_text("a file where a shelf would be")
    return {path: os.readlink(path) if path.is_symlink() else path.stat().st_mtime_ns for path in folder.rglob("*") if not path.is_dir()}


def test_a_cache_touches_nothing_that_others_keep_in_its_folder(tmp_path: Path) -> None:
    before = foreign_files(tmp_path)
    cache = Cache(tmp_path, 8 * PIECE_BYTES)
    cache.prepare()
    for n in range(30):
        stores.CachedFile(Counted(bytes([n]) * PIECE_BYTES), cache, f"{n:02x}" * 32).read_into(memoryview(bytearray(10)), 0)
    own = [p for p in (tmp_path / "retinaforge-pieces").rglob("*-0") if p not in before]
    assert 0 < len(own) <= 9 and not cache.broken
    assert {path: os.readlink(path) if path.is_symlink() else path.stat().st_mtime_ns for path in before} == before


def test_a_set_in_a_folder_makes_no_cache(packed: Path, tmp_path: Path) -> None:
    before = foreign_files(tmp_path)
    local = Dataset(packed, cache=Cache(tmp_path, PIECE_BYTES))
    same_as(packed, local)
    assert {p for p in tmp_path.rglob("*") if not p.is_dir()} == set(before)


def test_a_remote_set_beside_a_local_one_is_cached(packed: Path, memory: str, tmp_path: Path) -> None:
    same_as(packed, Dataset(packed, cache=Cache(tmp_path, 1 << 30)).beside(memory))
    assert list((tmp_path / "retinaforge-pieces").rglob("*-0"))


def test_pieces_that_vanish_while_a_cache_is_cleared_are_no_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another process of the node clears at the same time, and the file system has no locks."""
    cache, other = Cache(tmp_path, 8 * PIECE_BYTES), Cache(tmp_path, PIECE_BYTES)
    for n in range(6):
        stores.CachedFile(Counted(bytes([n]) * PIECE_BYTES), cache, f"{n:02x}" * 32).read_into(memoryview(bytearray(10)), 0)
    real = cache._own

    def outrun():
        for k, one in enumerate(real()):
            if k == 2:
                other.prepare()
            yield one

    def no_locks(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(cache, "_own", outrun)
    monkeypatch.setattr(caching.fcntl, "flock", no_locks)
    cache.limit_bytes = PIECE_BYTES
    cache.prepare()
    assert not cache.broken and len(list(tmp_path.rglob("*-0"))) <= 1


def test_a_damaged_index_in_the_cache_is_fetched_again(packed: Path, memory: str, tmp_path: Path) -> None:
    Dataset(memory, cache=Cache(tmp_path, 1 << 30)).cube("train", 0)
    for path in (p for p in tmp_path.rglob("*-*") if p.is_file()):
        path.write_bytes(bytes(path.stat().st_size))
    same_as(packed, Dataset(memory, cache=Cache(tmp_path, 1 << 30)))


def test_a_shard_that_vanishes_under_a_running_job_is_named(memory: str) -> None:
    import fsspec

    dataset = Dataset(memory)
    dataset.cube("train", 0)
    fsspec.filesystem("memory").rm("/set/train-000000.tar")
    with pytest.raises(CorruptData, match="cannot be read"):
        dataset.cube("train", 1)


def test_verify_writes_nowhere_but_in_its_own_folder(packed: Path, memory: str, tmp_path: Path) -> None:
    import json

    import fsspec

    from data_shards import durable, manifest
    from data_shards.packing.verify import verify

    fs, victim = fsspec.filesystem("memory"), tmp_path / "victim.tar"
    victim.write_text("mine")
    fields = json.loads(fs.cat_file("/set/dataset.json"))
    fields.pop("sha256")
    fields["shards"][0]["name"] = str(victim)
    fs.pipe("/set/dataset.json", durable.readable_json(manifest._checked(fields)))
    fs.pipe(f"/set/{victim}", b"theirs")
    with pytest.raises(CorruptData, match="victim"):
        list(verify(memory))
    assert victim.read_text() == "mine"
