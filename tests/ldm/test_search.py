"""Nearest neighbours are exact, to the bit and whatever the tiles, blocks, devices: against brute force in float64, on both backends."""

import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from data_shards.errors import CorruptData, InputError
from ldm.search import (
    ArrayRows,
    ChosenRows,
    FileRows,
    JoinedRows,
    Search,
    approximate_neighbours,
    backends,
    merged,
    nearest_neighbours,
    packages,
)
from ldm.search import tile as tiles
from ldm.search.backends import Backend, torch_holds
from ldm.search.exact import LEAST_GIB

both = pytest.mark.parametrize("backend", ["faiss", "torch"])


def brute(query, reference, k, not_in=None):
    """Distances (N, K) and positions (N, K) from the whole matrix of differences."""
    gap_NMD = query[:, None].astype(np.float64) - reference[None].astype(np.float64)
    distance_NM = np.sqrt(np.einsum("nmd,nmd->nm", gap_NMD, gap_NMD))
    if not_in is not None:
        distance_NM[not_in[0][:, None] == not_in[1]] = np.inf
    missing = max(0, k - len(reference))
    distance_NM = np.pad(distance_NM, ((0, 0), (0, missing)), constant_values=np.inf)
    index_NK = np.argsort(distance_NM, axis=1, kind="stable")[:, :k]
    distance_NK = np.take_along_axis(distance_NM, index_NK, 1)
    return distance_NK, np.where(np.isinf(distance_NK), -1, index_NK)


def same(found, expected):
    np.testing.assert_array_equal(found[1], expected[1])
    np.testing.assert_array_equal(found[0], expected[0])


def normal(seed, *shape, mean=0.0, spread=1.0, dtype=np.float32):
    return np.random.default_rng(seed).normal(mean, spread, shape).astype(dtype)


def awkward(kind):
    """Queries and reference that are hard in one way."""
    query, reference = normal(0, 33, 24), normal(1, 301, 24)
    if kind == "duplicates":
        reference = reference[np.random.default_rng(2).integers(0, 40, 301)]
        query = np.concatenate([reference[:20], query[:13]])
    elif kind == "far from the origin":
        query, reference = query.astype(np.float64) * 1e-3 + 1e4, reference.astype(np.float64) * 1e-3 + 1e4
    elif kind == "near copies":
        query = reference[:33].astype(np.float64) + normal(3, 33, 24, spread=1e-5)
    elif kind == "one row far off":
        reference[17] = 1e6
        query[3] = -1e5
    elif kind == "a grid":
        query, reference = np.round(query[:, :3]), np.round(reference[:, :3])
    elif kind == "tiny":
        query, reference = query * np.float32(1e-25), reference * np.float32(1e-25)
    return query, reference


KINDS = ["plain", "duplicates", "far from the origin", "near copies", "one row far off", "a grid", "tiny"]
TILINGS = [{}, {"tile": 300}, {"tile": 13, "block": 10}, {"tile": 128, "block": 1}]


@both
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("k", [1, 4])
def test_equals_brute_force_to_the_bit_by_any_tiles(backend, kind, k):
    query, reference = awkward(kind)
    expected = brute(query, reference, k)
    for tiling in TILINGS:
        same(nearest_neighbours(query, reference, k, backend=backend, **tiling), expected)


@both
@pytest.mark.parametrize("k", [301, 305])
def test_all_of_the_reference_in_order(backend, k):
    query, reference = awkward("duplicates")
    for tiling in TILINGS[:3]:
        same(nearest_neighbours(query, reference, k, backend=backend, **tiling), brute(query, reference, k))


@both
@pytest.mark.parametrize("dimension", [1, 2, 17, 5000])
def test_any_dimension(backend, dimension):
    query, reference = normal(0, 3, dimension), normal(1, 40, dimension)
    found = nearest_neighbours(query, reference, 2, backend=backend, tile=13)
    expected = brute(query, reference, 2)
    np.testing.assert_array_equal(found[1], expected[1])
    np.testing.assert_allclose(found[0], expected[0], rtol=1e-14)
    same(found, nearest_neighbours(query, reference, 2, backend=backend, tile=1, block=1))


@both
def test_copies_at_1e_5_keep_their_distance(backend):
    """The trap: on features of mean 3 and deviation 1, |x|² - 2xy + |y|² in float32 calls them 0."""
    rng = np.random.default_rng(1)
    reference = rng.normal(3, 1, (3000, 64))
    query = reference[100:150] + rng.normal(0, 1e-5, (50, 64))
    distance, index = nearest_neighbours(query, reference, backend=backend)
    np.testing.assert_array_equal(index[:, 0], np.arange(100, 150))
    np.testing.assert_allclose(distance[:, 0], np.linalg.norm(query - reference[100:150], axis=1), rtol=1e-9)


@both
@pytest.mark.parametrize("most", [10, 1024])
def test_the_nearest_among_many_that_float32_cannot_tell_apart(backend, most, monkeypatch):
    """300 near copies, closer to each other than float32 products resolve: more than the first candidates hold, or any list of them."""
    monkeypatch.setattr(tiles, "MOST_CANDIDATES", most)
    rng = np.random.default_rng(2)
    centre = rng.normal(3, 1, 64)
    reference = np.concatenate([centre + rng.normal(0, 1e-5, (300, 64)), rng.normal(3, 1, (700, 64))])
    query = centre + rng.normal(0, 1e-5, (20, 64))
    same(nearest_neighbours(query, reference, 3, backend=backend), brute(query, reference, 3))


@both
def test_k_beyond_the_reference_gives_minus_one(backend):
    distance, index = nearest_neighbours(np.zeros((2, 3)), np.array([[1.0, 0, 0], [0, 2.0, 0]]), 4, backend=backend, tile=1)
    np.testing.assert_array_equal(index, [[0, 1, -1, -1]] * 2)
    np.testing.assert_array_equal(distance, [[1, 2, np.inf, np.inf]] * 2)


@both
def test_equal_ones_come_in_the_order_of_the_reference(backend):
    for tile in (None, 2):
        assert nearest_neighbours(np.zeros((1, 2)), np.ones((5, 2)), 3, backend=backend, tile=tile)[1].tolist() == [[0, 1, 2]]


def test_no_queries_have_no_neighbours():
    assert nearest_neighbours(np.zeros((0, 3)), np.zeros((2, 3)), 4)[1].shape == (0, 4)


# -- groups


@both
@pytest.mark.parametrize("people", [150, 30, 3, 1])
@pytest.mark.parametrize("k", [1, 6])
def test_a_query_s_own_group_does_not_count(backend, people, k):
    """Two images a person, ten, and so many that they are left out of the rough search; queries lie nearest to their own."""
    rng = np.random.default_rng(people)
    of = np.array([f"person {i}" for i in rng.integers(0, people, 301)])
    reference = normal(people, 301, 24)
    query = (reference[:40] + normal(5, 40, 24, spread=0.1)).astype(np.float32)
    own = np.concatenate([of[:35], ["a stranger"] * 5])
    expected = brute(query, reference, k, (own, of))
    for tiling in TILINGS:
        same(nearest_neighbours(query, reference, k, backend=backend, not_in=(own, of), **tiling), expected)


def test_few_candidates_are_fetched_however_large_the_largest_group(monkeypatch):
    """k does not grow by the images of the largest person."""
    asked = []
    monkeypatch.setattr(tiles, "torch_top", lambda q, r, norm, t: asked.append(t) or backends.torch_top(q, r, norm, t))
    of = np.repeat(np.arange(20), 100)
    reference = normal(0, 2000, 16) + 100 * of[:, None]
    own = of[::100]
    same(nearest_neighbours(reference[::100], reference, not_in=(own, of)), brute(reference[::100], reference, 1, (own, of)))
    assert len(asked) == 20 and set(asked) == {1 + tiles.MARGIN}


# -- sources, stretches, several asks


def test_rows_in_files_are_found_as_those_in_memory(tmp_path):
    """Files of several lengths, one empty, of which some rows count."""
    reference, query = normal(1, 301, 24), normal(0, 33, 24)
    files = []
    for number, rows in enumerate(np.split(reference, [1, 100, 100, 257])):
        save_file({"features": np.ascontiguousarray(rows), "others": np.zeros(3)}, tmp_path / f"{number}.safetensors")
        files.append(FileRows(tmp_path / f"{number}.safetensors", "features"))
    joined, kept = JoinedRows(files), np.flatnonzero(np.arange(301) % 3)
    for tile in (None, 50):
        same(nearest_neighbours(JoinedRows([ArrayRows(query)]), joined, 3, tile=tile), brute(query, reference, 3))
        same(nearest_neighbours(query, ChosenRows(joined, kept), 3, tile=tile), brute(query, reference[kept], 3))


class Counted(ArrayRows):
    """Rows that cost memory, and count how often each is read."""

    copied = True

    def __init__(self, rows_ND):
        super().__init__(rows_ND)
        self.reads_N = np.zeros(len(rows_ND), int)

    def read(self, start, stop):
        self.reads_N[start:stop] += 1
        return super().read(start, stop).copy()


def test_what_fits_is_read_once_and_what_does_not_once_for_each_block():
    query, reference = normal(0, 60, 512), Counted(normal(1, 8000, 512))
    search = Search(reference, memory_gib=LEAST_GIB)
    sampled_N = reference.reads_N.copy()
    for _ in range(2):
        search.nearest(query, block=20)
    assert search.tile < len(reference) and set(reference.reads_N - sampled_N) == {2 * 3}
    search, sampled_N = Search(reference, memory_gib=1), reference.reads_N.copy()
    for _ in range(2):
        search.nearest(query, block=20)
    assert set(reference.reads_N - sampled_N) == {1}


@pytest.mark.parametrize("borders", [[0, 301], [0, 1, 301], [0, 100, 130, 300, 301]])
def test_stretches_merge_to_the_answer_of_the_whole(borders):
    query, reference = awkward("duplicates")
    groups = np.arange(33) % 5, np.arange(301) % 7
    for not_in in (None, groups):
        parts = [nearest_neighbours(query, reference, 4, stretch=ab, not_in=not_in) for ab in pairwise(borders)]
        same(merged(parts), brute(query, reference, 4, not_in))
        same(merged(parts[::-1]), brute(query, reference, 4, not_in))


# -- devices: as many processors in place of GPUs


@pytest.mark.parametrize("devices", [["cpu", "cpu"], ["cpu"] * 3])
def test_any_number_of_devices_gives_the_same(devices, monkeypatch):
    monkeypatch.setattr("ldm.search.exact.chosen", lambda backend, device: Backend(torch_holds, devices))
    for kind in ("plain", "duplicates"):
        query, reference = awkward(kind)
        for tiling in TILINGS[:3]:
            same(nearest_neighbours(query, reference, 3, **tiling), brute(query, reference, 3))


@pytest.mark.parametrize(
    "full", [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("alloc fail type FlatData (cudaMalloc error out of memory [2])")]
)
@pytest.mark.parametrize(("most", "said"), [(80, "75 rows at a time"), (10, "on the processor from now on")])
def test_a_full_gpu_takes_less_at_a_time_then_the_processor_does_it(full, most, said, monkeypatch):
    def holds(rows_RD, device):
        if device != "cpu" and len(rows_RD) > most:
            raise full
        return torch_holds(rows_RD, "cpu")

    monkeypatch.setattr(backends, "LEAST_ON_GPU", 30)
    monkeypatch.setattr("ldm.search.exact.chosen", lambda backend, device: Backend(holds, ["cuda:0", "cuda:1"]))
    query, reference = awkward("plain")
    with pytest.warns(UserWarning) as warned:
        found = nearest_neighbours(query, reference, 3, block=10)
    assert said in str(warned[-1].message)
    same(found, brute(query, reference, 3))


def test_other_errors_of_a_device_are_not_hidden(monkeypatch):
    def holds(rows_RD, device):
        raise RuntimeError("device-side assert triggered")

    monkeypatch.setattr("ldm.search.exact.chosen", lambda backend, device: Backend(holds, ["cuda:0"]))
    with pytest.raises(RuntimeError, match="assert triggered"):
        nearest_neighbours(*awkward("plain"))


@pytest.fixture
def fresh_faiss():
    backends.faiss_module.cache_clear()
    yield
    backends.faiss_module.cache_clear()


def test_two_packages_of_faiss_are_refused_and_the_way_out_is_told(monkeypatch, fresh_faiss):
    monkeypatch.setattr(packages, "installed", lambda: {"faiss-cpu": "1.15.1", "faiss-gpu": "1.15.1"})
    with pytest.raises(InputError, match="overwrite each other") as refused:
        nearest_neighbours(*awkward("plain"), backend="faiss")
    assert "pip uninstall -y faiss-cpu faiss-gpu" in refused.value.mend
    with pytest.warns(UserWarning, match="by torch, for faiss-cpu and faiss-gpu"):
        found = nearest_neighbours(*awkward("plain"))
    same(found, brute(*awkward("plain"), 1))


def test_faiss_that_does_not_load_gives_way_to_torch(monkeypatch, fresh_faiss):
    """Built for GPUs, on a machine without CUDA's libraries."""
    monkeypatch.setattr(packages, "installed", lambda: {"faiss-gpu": "1.15.1"})
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(InputError, match="faiss-gpu does not load"):
        nearest_neighbours(*awkward("plain"), backend="faiss")
    with pytest.warns(UserWarning, match="by torch"):
        same(nearest_neighbours(*awkward("plain")), brute(*awkward("plain"), 1))


def test_without_faiss_torch_searches(monkeypatch):
    monkeypatch.setattr(packages, "installed", dict)
    assert backends.chosen().holds is torch_holds


def test_bfloat16_products_of_a_training_do_not_reach_the_search():
    query, reference = awkward("plain")
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            same(nearest_neighbours(query, reference, 3, backend="torch"), brute(query, reference, 3))
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision(before)


@pytest.mark.parametrize(("columns", "t"), [(500, 1), (503, 3), (4096, 8), (97, 40), (5, 5)])
def test_the_smallest_are_found_by_groups(columns, t):
    score = torch.from_numpy(normal(columns, 20, columns))
    values, index = backends.smallest(score, t)
    assert torch.equal(values, score.sort(1).values[:, :t]) and torch.equal(score.gather(1, index), values)


# -- lists


def test_lists_come_with_the_share_of_planted_copies_that_they_find():
    query, reference = normal(0, 50, 24), normal(1, 2000, 24)
    by_all = approximate_neighbours(query, reference, 3, lists=40, probes=40, planted=200)
    same((by_all.distance_NK, by_all.index_NK), brute(query, reference, 3))
    assert (by_all.recall, by_all.planted) == (1.0, 200)
    by_one = approximate_neighbours(query, reference, 3, lists=40, probes=1, planted=200)
    assert 0 < by_one.recall < 1  # a tenth of the way to the next row is far enough to leave a list
    found = by_one.index_NK >= 0
    gap = (query[:, None] - reference[by_one.index_NK].astype(np.float64))[found]
    np.testing.assert_allclose(by_one.distance_NK[found], np.linalg.norm(gap, axis=1), rtol=1e-12)
    assert (by_one.distance_NK >= brute(query, reference, 3)[0]).all()


def test_lists_that_do_not_fit_are_refused():
    with pytest.raises(InputError, match="do not fit"):
        approximate_neighbours(normal(0, 2, 512), Counted(normal(1, 8000, 512)), memory_gib=2 * LEAST_GIB)


# -- memory

MEASURED = """
import sys
from pathlib import Path
import numpy as np
from ldm.search import ChosenRows, FileRows, nearest_neighbours
rows, memory_gib = FileRows(Path(sys.argv[1]), "x"), float(sys.argv[2])
few = ChosenRows(rows, np.arange(0, len(rows), 400))
def gib(name):
    return int(Path("/proc/self/status").read_text().split(name + ":")[1].split()[0]) / 2**20
for backend in ("faiss", "torch"):
    nearest_neighbours(few, few, backend=backend)
    Path("/proc/self/clear_refs").write_text("5")
    before = gib("VmRSS")
    nearest_neighbours(few, rows, 3, backend=backend, memory_gib=memory_gib)
    nearest_neighbours(rows, few, 3, backend=backend, memory_gib=memory_gib)
    print(gib("VmHWM") - before)
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the peak is read from Linux")
def test_memory_stays_within_the_setting(tmp_path):
    """78 MiB of rows, as reference and as queries, in 64 MiB, on both backends."""
    save_file({"x": np.random.default_rng(0).standard_normal((40_000, 512), np.float32)}, tmp_path / "rows.safetensors")
    words = [sys.executable, "-c", MEASURED, str(tmp_path / "rows.safetensors"), str(LEAST_GIB)]
    done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=200)
    assert done.returncode == 0, done.stderr
    for grown in map(float, done.stdout.split()):
        assert 0 < grown < LEAST_GIB + 0.01


# -- refusals


@pytest.mark.parametrize(
    ("query", "reference", "options"),
    [
        (np.zeros((2, 3)), np.zeros((2, 4)), {}),
        (np.zeros((2, 3)), np.zeros(3), {}),
        (np.zeros((2, 3)), np.zeros((0, 3)), {}),
        (np.zeros((2, 0)), np.zeros((2, 0)), {}),
        (np.zeros((2, 3)), np.zeros((2, 3)), {"k": 0}),
        (np.zeros((2, 3)), np.zeros((2, 3)), {"backend": "annoy"}),
        (np.zeros((2, 3)), np.zeros((2, 3)), {"memory_gib": 0.01}),
        (np.zeros((2, 3)), np.zeros((2, 3)), {"stretch": (1, 1)}),
        (np.zeros((2, 3)), np.zeros((2, 3)), {"stretch": (1, 3)}),
        (np.zeros((2, 3)), np.zeros((2, 3)), {"not_in": (np.zeros(2), np.zeros(3))}),
    ],
)
def test_refusals(query, reference, options):
    with pytest.raises(InputError):
        nearest_neighbours(query, reference, **options)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize("backend", ["faiss", "torch"])
def test_a_gpu_that_is_not_there_is_refused(backend):
    with pytest.raises(InputError, match="no cuda"):
        nearest_neighbours(np.zeros((2, 3)), np.zeros((2, 3)), backend=backend, device="cuda")


@both
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e30])
@pytest.mark.parametrize("row", [0, 200, 300])
def test_a_row_that_is_no_number_is_refused_by_its_number(backend, value, row):
    query, reference = awkward("plain")
    for wrong, name in ((reference, "reference"), (query, "query")):
        number = min(row, len(wrong) - 1)
        before, wrong[number, 3] = wrong[number, 3], value
        with pytest.raises(InputError, match=f"{name} row {number} "):
            nearest_neighbours(query, reference, backend=backend, tile=64, block=10)
        wrong[number, 3] = before


def test_files_that_are_not_rows_are_refused(tmp_path):
    save_file({"x": np.zeros(3), "y": np.zeros((2, 2), np.int64)}, tmp_path / "a.safetensors")
    for name, key, kind in (("a", "z", InputError), ("a", "x", InputError), ("a", "y", InputError), ("b", "x", InputError)):
        with pytest.raises(kind) as refused:
            FileRows(tmp_path / f"{name}.safetensors", key)
        assert refused.value.where == tmp_path / f"{name}.safetensors"
    (tmp_path / "a.safetensors").write_bytes(b"no tensors")
    with pytest.raises(CorruptData):
        FileRows(tmp_path / "a.safetensors", "x")
    with pytest.raises(InputError, match=r"dimensions \[2, 3\]"):
        JoinedRows([ArrayRows(np.zeros((1, 2))), ArrayRows(np.zeros((1, 3)))])
