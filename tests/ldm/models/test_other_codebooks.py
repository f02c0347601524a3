"""Codebooks that k-means does not make: equal to their papers' equations and to a library's, and trained as the usual one is."""

from __future__ import annotations

import sys
from dataclasses import replace
from itertools import islice
from pathlib import Path

import pytest
import torch

from data_shards.errors import InputError
from data_shards.reading.dataset import Dataset
from launch import build
from launch.config import VQGANStage
from launch.tree import load
from ldm.checkpoints.export import as_vqmodel
from ldm.checkpoints.store import CheckpointStore, Reader
from ldm.checkpoints.trained import Autoencoder, load_autoencoder
from ldm.comm import Alone
from ldm.models.codebook import EMACodebook
from ldm.models.config import CodebookConfig
from ldm.models.other_codebooks import FSQ, CodeMap, SimVQ, codebook_from
from ldm.training.engine import Engine
from ldm.training.vqgan import VQGANTrainer
from tests.runs import Place

peer = pytest.importorskip(
    "vector_quantize_pytorch", reason="the extra 'codebooks' is not installed: pip install -c constraints.txt -e '.[codebooks]'"
)
LEVELS = (5, 3, 4, 3)
FSQ_WORDS = {"kind": "fsq", "levels": LEVELS, "codes": 180, "kmeans": "never"}


def latents(seed: int = 0) -> torch.Tensor:
    return torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(seed))


def test_rotation_gives_the_codes_and_turns_the_gradient_with_them() -> None:
    """Fifty et al. 2024: the gradient at a latent is λ Rᵀ g, R the reflections that turn h into q, λ = |q| / |h|."""
    book = codebook_from(CodebookConfig(codes=16, kmeans_vectors=16, gradient="rotation"), channels=4, seed=0)
    assert type(book) is EMACodebook
    h, g = latents().requires_grad_(), latents(1)
    q, index = book(h)
    torch.testing.assert_close(q, book.codes_KD[index].movedim(-1, 1), rtol=1e-5, atol=1e-5)
    q.backward(g)
    one = torch.eye(4, dtype=torch.float64)
    for b, y, x in ((0, 0, 0), (1, 3, 5), (1, 7, 7)):
        e, c = h[b, :, y, x].detach().double(), book.codes_KD[index[b, y, x]].double()
        u, v = e / e.norm(), c / c.norm()
        r = (u + v) / (u + v).norm()
        R = one - 2 * torch.outer(r, r) + 2 * torch.outer(v, u)
        torch.testing.assert_close(R @ u, v, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(h.grad[b, :, y, x].double(), c.norm() / e.norm() * R.T @ g[b, :, y, x].double(), rtol=1e-4, atol=1e-5)
    with torch.no_grad():  # in use nothing is turned
        straight = codebook_from(CodebookConfig(codes=16, kmeans_vectors=16), channels=4, seed=0)
        assert torch.equal(book(latents())[0], straight(latents())[0]) and not torch.equal(book(latents())[0], q)


def test_simvq_is_the_librarys() -> None:
    """Codes, indices, both terms of the loss, and the gradient of the map."""
    book = codebook_from(CodebookConfig(codes=32, kind="simvq", kmeans="never"), channels=4, seed=0)
    learned = book.learned()
    assert isinstance(book, SimVQ) and isinstance(learned, CodeMap)
    theirs = peer.SimVQ(dim=4, codebook_size=32, channel_first=True, rotation_trick=False, input_to_quantize_commit_loss_weight=0.25)
    theirs.frozen_codebook.copy_(book.fixed_KD)
    theirs.code_transform.weight.data.copy_(learned.weight.data)
    codes_KD = learned(book.fixed_KD)
    book.codes_KD.copy_(codes_KD.detach())
    h, h_theirs = latents().requires_grad_(), latents().requires_grad_()
    q, index = book(h)
    their_q, their_index, their_loss = theirs(h_theirs)
    assert torch.equal(index, their_index)
    torch.testing.assert_close(q, their_q)
    loss = torch.nn.functional.mse_loss(codes_KD[index].movedim(-1, 1), h.detach()) + 0.25 * book.commitment(h, index)
    torch.testing.assert_close(loss, their_loss)
    (loss + q.square().sum()).backward()
    (their_loss + their_q.square().sum()).backward()
    torch.testing.assert_close(h.grad, h_theirs.grad)
    torch.testing.assert_close(learned.weight.grad, theirs.code_transform.weight.grad)


def test_fsq_rounds_each_channel_to_its_levels() -> None:
    book = codebook_from(CodebookConfig(**FSQ_WORDS), channels=4, seed=0)
    assert isinstance(book, FSQ) and len(book.codes_KD) == 180 and len(book.codes_KD.unique(dim=0)) == 180
    h = (3 * latents()).requires_grad_()
    q, index = book(h)
    assert [len(q[:, d].detach().unique()) for d in range(4)] == list(LEVELS)
    assert torch.equal(q, book.codes_KD[index].movedim(-1, 1))
    assert float(book.commitment(h, index)) == 0
    q.sum().backward()
    assert (h.grad[h.abs() < 2] > 0).all(), "tanh's slope, passed straight through the rounding"
    counts_K = book.statistics(h, index)[:, -1]
    assert torch.equal(counts_K, torch.bincount(index.flatten(), minlength=180).double())
    before = book.codes_KD.clone()
    book.update(book.statistics(h, index))
    assert torch.equal(book.codes_KD, before) and not len(book.dead())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"kind": "simvq"}, "kmeans=never"),
        ({"kind": "simvq", "kmeans": "never", "start": "codes.safetensors"}, "no start"),
        ({"kind": "fsq", "kmeans": "never"}, "levels for 'fsq'"),
        ({"kind": "fsq", "kmeans": "never", "levels": (8, 5, 5, 5)}, "whose product is codes"),
        ({"kind": "fsq", "kmeans": "never", "levels": (2, 512)}, "3 or more"),
        ({"levels": (4, 4, 4, 4, 4)}, "levels for 'fsq' alone"),
        ({**FSQ_WORDS, "gradient": "rotation"}, "straight_through"),
        ({**FSQ_WORDS, "warmup_epochs": 1}, "warmup_epochs 1 with kind 'fsq'"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(words: dict, message: str) -> None:
    with pytest.raises(InputError) as refused:
        CodebookConfig(**words)
    assert message in str(refused.value)


def test_levels_that_are_not_the_channels_and_an_absent_library_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="4 levels for 8 latent channels"):
        codebook_from(CodebookConfig(**FSQ_WORDS), channels=8, seed=0)
    words = [f"vqgan.codebook.{word}" for word in ("kind=fsq", "levels=[5,3,4,3]", "codes=180", "kmeans=never", "warmup_epochs=0")]
    with pytest.raises(InputError, match="8 latent channels"):
        load("demo", words)
    assert load("demo", [*words, "vqgan.model.latent_channels=4"]).vqgan.codebook.levels == LEVELS
    monkeypatch.setitem(sys.modules, "vector_quantize_pytorch", None)
    with pytest.raises(InputError, match="kind=fsq without the Python package") as refused:
        codebook_from(CodebookConfig(**FSQ_WORDS), channels=4, seed=0)
    assert "[codebooks]" in str(refused.value)


@pytest.mark.parametrize("words", [{"codes": 16, "kmeans_vectors": 16}, FSQ_WORDS], ids=["ema", "fsq"])
@pytest.mark.parametrize("wrong", [float("nan"), float("inf"), -float("inf")])
def test_latents_that_are_not_finite_are_left_to_the_loop_to_skip(words: dict, wrong: float) -> None:
    """All ranks skip such a step together: nothing may raise on the one that it happened to."""
    book, h = codebook_from(CodebookConfig(**words), channels=4, seed=0), latents()
    h[0, :, 2, 3] = wrong
    index = book(h)[1]
    assert int(index.min()) >= 0 and int(index.max()) < len(book.codes_KD)


def stage(**codebook: object) -> VQGANStage:
    small = load("demo").vqgan
    chosen = CodebookConfig(**{"codes": 32, "kmeans_vectors": 512, **codebook})
    model = replace(small.model, latent_channels=4)
    return replace(small, model=model, codebook=chosen, loop=replace(small.loop, batch=4), engine=replace(small.engine, tracker="none"))


@pytest.mark.parametrize(
    "words",
    [{"kind": "simvq", "kmeans": "never", "warmup_epochs": 1}, FSQ_WORDS, {"gradient": "rotation", "kmeans": "first", "warmup_epochs": 1}],
    ids=["simvq", "fsq", "rotation"],
)
def test_each_trains_and_its_codes_stand_still_before_their_start(dataset: Dataset, words: dict) -> None:
    engine = Engine(stage().engine)
    trainer, stream, _ = build.vqgan_trainer(stage(**words), dataset, engine)
    batches, errors, before, warmup = stream.batches(0), [], trainer.codebook.codes_KD.clone(), words.get("warmup_epochs", 0)
    batch = next(islice(batches, 1))
    for step in range(12):
        epoch = min(step, 1)
        trainer.start_epoch(epoch)
        samples = epoch * stream.count + step
        losses, terms = trainer.losses(batch, samples)
        assert ("code_map" in losses) == (words.get("kind") == "simvq" and step > 0)
        engine.backward(losses)
        engine.step(trainer.learning_rates(samples))
        told = trainer.after_step(samples, 4, skipped=False)
        assert ("codes/usage" in told) == (epoch >= warmup)
        errors.append(float(terms["loss/l1"]))
        if epoch < warmup:
            assert torch.equal(trainer.codebook.codes_KD, before)
    assert errors[-1] < 0.9 * errors[1], errors
    assert torch.equal(trainer.codebook.codes_KD, before) == (words.get("kind") == "fsq")
    parts = (trainer.module, trainer.codebook, trainer.normaliser, trainer.fov_HW)
    autoencoder = Autoencoder(*parts, data={}, digest="")
    if words.get("kind") == "fsq":
        with pytest.raises(InputError, match="kind 'fsq'"):
            as_vqmodel(autoencoder)
    else:
        assert torch.equal(as_vqmodel(autoencoder).quantize.embedding.weight, trainer.codebook.codes_KD)


@pytest.mark.parametrize("kind", ["simvq", "rotation"])
def test_ranks_and_zero_train_what_one_process_trains_and_a_resume_goes_on(place: Place, kind: str) -> None:
    """Under ZeRO-3 the map of SimVQ lies cut up over ranks, and is put together at each call."""
    pytest.importorskip("deepspeed", reason="the extra 'deepspeed' is not installed")
    words = {"simvq": ["kind=simvq", "kmeans=never"], "rotation": ["gradient=rotation"]}[kind]
    overrides = [*(f"vqgan.codebook.{word}" for word in words), "vqgan.loop.samples="]
    names = {("ddp", 1): f"{kind}-one", ("ddp", 2): f"{kind}-two", ("zero3", 2): f"{kind}-zero3"}
    for (mode, world), name in names.items():
        place.train(name, "vqgan", mode, world, *overrides[:-1], overrides[-1] + "32", expect=True)
    name = f"{kind}-resumed"
    place.train(name, "vqgan", "zero2", 2, *overrides[:-1], overrides[-1] + "16", expect=True)
    place.train(name, "vqgan", "zero3", 2, *overrides[:-1], overrides[-1] + "32", expect=True)
    one = place.curve(f"{kind}-one", "vqgan")
    codes = Reader(place.store(f"{kind}-one", "vqgan").newest(progress_exists=True)).under("codebook.")["codes_KD"]
    for other in (*list(names.values())[1:], name):
        for a, b in zip(one, place.curve(other, "vqgan"), strict=True):
            assert a.keys() == b.keys()
            for key in a:
                assert b[key] == pytest.approx(a[key], rel=1e-5, abs=1e-9), (other, key)
        theirs = Reader(place.store(other, "vqgan").newest(progress_exists=True)).under("codebook.")["codes_KD"]
        torch.testing.assert_close(theirs, codes, rtol=1e-5, atol=1e-6)


def test_a_trained_autoencoder_is_loaded_with_its_kind_of_codebook(place: Place, tmp_path: Path) -> None:
    words = ["kind=fsq", "levels=[5,3,4,3]", "codes=180", "kmeans=never"]
    place.train("fsq", "vqgan", "ddp", 1, *(f"vqgan.codebook.{word}" for word in words), "vqgan.loop.samples=16", expect=True)
    loaded = load_autoencoder(place.run("fsq", "vqgan") / "vqgan")
    assert isinstance(loaded.codebook, FSQ)
    decoded = loaded.decode(latents(), quantise=True)
    assert decoded.dtype == torch.uint16 and decoded.shape[0] == 2
    with pytest.raises(InputError, match="quantise=false"):
        loaded.decode(latents(), quantise=False)


def test_averages_that_an_earlier_version_kept_with_kinds_that_have_none_are_left_out(place: Place, tmp_path: Path) -> None:
    words = ["kind=fsq", "levels=[5,3,4,3]", "codes=180", "kmeans=never"]
    place.train("fsq", "vqgan", "ddp", 1, *(f"vqgan.codebook.{word}" for word in words), "vqgan.loop.samples=16", expect=True)
    newest = place.store("fsq", "vqgan").newest(progress_exists=True)
    read = Reader(newest)
    averages = {"codebook.share_K": torch.ones(180), "codebook.sum_KD": torch.ones(180, 4)}
    assert not averages.keys() & read.shapes.keys()
    store = CheckpointStore(tmp_path / "checkpoints", Alone(), used=VQGANTrainer.USED)
    store.commit(newest.samples, newest.state, {**{name: read(name) for name in read.shapes}, **averages})
    now, then = load_autoencoder(place.run("fsq", "vqgan") / "vqgan"), load_autoencoder(tmp_path)
    assert torch.equal(then.decode(latents(), quantise=True), now.decode(latents(), quantise=True))
