"""A denoiser that knows its training images by heart is caught; an untrained one, honest scores and unlike people are not accused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import kstest
from torch import Tensor, nn

from data_shards.errors import InputError
from data_shards.folder import write_cube
from data_shards.manifest import BandStats
from data_shards.packing.pack import pack, write_dataset
from data_shards.reading.dataset import Dataset
from data_shards.reading.stream import CubeStream
from ldm.authenticity.attacks import ATTACKS, DIFFICULTY, log_error_of_rings, noise_seen
from ldm.authenticity.membership import Membership, MembershipConfig, membership, rows_of_membership
from ldm.authenticity.membership_verdict import calibrated, judged
from ldm.checkpoints.trained import Autoencoder, Denoiser
from ldm.models.config import CodebookConfig, ObjectiveConfig, UNetConfig, VQGANConfig
from ldm.models.denoiser import UNet
from ldm.models.noise import SAMPLES, normal_at
from ldm.models.objective import noise_in, noised_at, schedule
from ldm.models.other_codebooks import codebook_from
from ldm.models.vqgan import VQGAN, initialised
from ldm.normalise import CubeNormaliser, LatentNormaliser
from tests.conftest import made_cube

MODEL = VQGANConfig(bands=4, compression=4, latent_channels=4, channels=8, layers=1, norm_groups=4)
CONFIG = MembershipConfig(times=(200, 500))


class Memory(nn.Module):
    """The best denoiser there is for the training latents alone: it says their mean, weighted by how near each is (flow)."""

    def __init__(self, trained_NDHW: Tensor) -> None:
        super().__init__()
        self.trained_NDHW = trained_NDHW

    def forward(self, x_BDHW: Tensor, t_B: Tensor) -> Tensor:
        s = (t_B / 1000).view(-1, 1, 1, 1)
        away_BN = (x_BDHW[:, None] - (1 - s)[:, None] * self.trained_NDHW).square().sum((2, 3, 4))
        weight_BN = torch.softmax(-away_BN / (2 * s.view(-1, 1) ** 2), dim=1)
        return (x_BDHW - torch.einsum("bn,ndhw->bdhw", weight_BN, self.trained_NDHW)) / s


def autoencoder_of(dataset: Dataset) -> Autoencoder:
    """Untrained: it knows nobody."""
    return Autoencoder(
        vqgan=initialised(lambda: VQGAN(MODEL), 0).eval(),
        codebook=codebook_from(CodebookConfig(codes=16), channels=4, seed=0),
        normaliser=CubeNormaliser(dataset.stats, scale=dataset.scale, offset=dataset.offset),
        fov_HW=torch.ones(dataset.shape[1:], dtype=torch.bool),
        data={"digest": dataset.digest},
        digest="a" * 64,
    )


def denoiser_of(autoencoder: Autoencoder, net: nn.Module, stats: BandStats, target: str = "flow") -> Denoiser:
    return Denoiser(
        net=net.eval(),
        normaliser=LatentNormaliser(stats),
        objective=ObjectiveConfig(target=target),
        latent_shape=(4, 8, 8),
        autoencoder=autoencoder.digest,
        digest="d" * 64,
    )


@pytest.fixture(scope="module")
def people(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """12 training people of two images each, and 12 held out in two splits."""
    folder = tmp_path_factory.mktemp("people")
    for i in range(48):
        write_cube(folder / "loose", made_cube(i + 200, split="train" if i < 24 else "val" if i < 36 else "test"))
    pack(folder / "loose", folder / "set", shard_mib=1)
    return Dataset(folder / "set")


@pytest.fixture(scope="module")
def networks(people: Dataset) -> dict[str, tuple[Autoencoder, Denoiser]]:
    autoencoder = autoencoder_of(people)
    with torch.no_grad():
        h_NDHW = torch.cat(
            [
                autoencoder.vqgan.encode(autoencoder.normaliser(batch.cubes_BCHW, batch.fov_BHW))
                for batch in CubeStream(people, "train", batch_size=8, maps=True).each(np.arange(24))
            ]
        )
    mean_D, std_D = (tuple(of(h_NDHW, (0, 2, 3)).tolist()) for of in (torch.mean, torch.std))
    stats = replace(people.stats, mean_C=mean_D, std_C=std_D)
    memory = Memory(LatentNormaliser(stats)(h_NDHW))
    untrained = initialised(lambda: UNet(UNetConfig(latent_channels=4, channels=8, layers=1)), 0)
    return {name: (autoencoder, denoiser_of(autoencoder, net, stats)) for name, net in (("memory", memory), ("untrained", untrained))}


def test_a_denoiser_that_knows_its_training_images_by_heart_is_caught(people: Dataset, networks: dict) -> None:
    result = membership(people, *networks["memory"], CONFIG)
    assert result.people == (12, 12) and result.judgement.leaks and "gives away" in result.judgement.verdict
    for name in set(ATTACKS) - {"autoencoder"}:
        of = result.judgement.attacks[name]
        assert of.separation.auc > 0.95 and of.p_holm < 1e-3 and of.at_low_fpr.tpr > 0.8
        assert set(of.auc_by_time) == {"200", "500"}
    assert result.judgement.attacks["autoencoder"].p_holm > 0.05  # it is untrained
    assert all(of.p_holm > 0.05 for of in result.judgement.yardsticks.values())
    assert {row.metric.split(":")[0] for row in rows_of_membership(result)} == {*ATTACKS, *DIFFICULTY}


def test_an_untrained_one_is_not_accused(people: Dataset, networks: dict) -> None:
    result = membership(people, *networks["untrained"], CONFIG)
    assert result.judgement.leaks is False and "do not tell" in result.judgement.verdict and "AUC from" in result.judgement.verdict
    assert all(of.p_holm > 0.05 for of in result.judgement.attacks.values())
    assert "private" not in result.judgement.verdict + result.caveat


def test_whoever_makes_the_units_the_result_is_the_same(people: Dataset, networks: dict, tmp_path: Path) -> None:
    alone = membership(people, *networks["untrained"], CONFIG)
    two = [Membership(people, *networks["untrained"], CONFIG, tmp_path / "membership.json") for _ in range(2)]
    with two[0], two[1]:
        for number in reversed(range(len(two[0].names))):
            two[number % 2].make(number)
        assert two[0].finish() == two[1].finish() == alone
    assert (tmp_path / "membership.json").exists()


def test_at_most_so_many_people_are_attacked_each_with_all_their_images(people: Dataset, networks: dict) -> None:
    units = Membership(people, *networks["untrained"], replace(CONFIG, people=5))
    sides = [units.train], units.held_out
    assert [len({person for part in parts for person in part.units()}) for parts in sides] == [5, 5]
    assert [sum(len(part.sample_N) for part in parts) for parts in sides] == [10, 10] and len(units.held_out) == 2


# --- the judgement of scores ------------------------------------------------------------------------------------------


def scores_of(seed: int, *, members: int = 20, others: int = 30, leak: float = 0.0, unlike: float = 0.0) -> tuple:
    """Two images of each person, whose difficulty decides most of a score."""
    rng = np.random.default_rng((9, seed))
    member_N = np.arange(2 * (members + others)) < 2 * members
    person_N = np.arange(len(member_N)) // 2
    own_N = rng.normal(size=members + others)[person_N]  # of a person
    difficulty = {name: own_N + rng.normal(size=len(member_N)) + unlike * member_N for name in DIFFICULTY}
    base_N = -3 * sum(difficulty.values()) + own_N
    scores = {name: base_N[:, None] + rng.normal(size=(len(member_N), 2)) + leak * member_N[:, None] for name in ("loss", "sima")}
    scores["autoencoder"] = base_N[:, None] + rng.normal(size=(len(member_N), 1))
    return scores, difficulty, [f"s{i:03d}" for i in person_N], member_N


def test_what_difficulty_hides_is_seen() -> None:
    judgement = judged(*scores_of(2, leak=2.5), times=(100, 200))
    assert judgement.leaks and judgement.attacks["loss"].p_holm < 0.01 and judgement.attacks["autoencoder"].p_holm > 0.05
    scores, _, people, member_N = scores_of(2, leak=2.5)
    flat = {name: np.zeros(len(people)) for name in DIFFICULTY}
    raw = judged(scores, flat, people, member_N, times=(100, 200))
    assert raw.attacks["loss"].separation.auc < judgement.attacks["loss"].separation.auc


def test_p_values_of_honest_models_are_uniform_and_hardly_one_is_accused() -> None:
    honest = [judged(*scores_of(seed, members=10, others=14), times=(100, 200)) for seed in range(120)]
    assert kstest([of.attacks["loss"].separation.p_value for of in honest], "uniform").pvalue > 0.01
    assert sum(of.leaks is True for of in honest) <= 13  # of 120 at 5 %: more are seen once in 200


def test_people_who_differ_by_themselves_get_no_verdict() -> None:
    judgement = judged(*scores_of(1, unlike=1.5), times=(100, 200))
    assert judgement.leaks is None and "no verdict" in judgement.verdict and "split of people at random" in judgement.reason
    backwards = judged(*scores_of(1, leak=-4), times=(100, 200))
    assert backwards.leaks is None and "people held out are better known" in backwards.reason


def test_too_few_people_get_no_verdict() -> None:
    judgement = judged(*scores_of(0, others=3), times=(100, 200))
    assert judgement.leaks is None and "at least 4 of each wanted" in judgement.reason
    few = judged(*scores_of(3, members=4, others=5), times=(100, 200))
    assert few.leaks is False and few.least_auc > 0.95


def test_scores_that_are_not_finite_are_left_out_with_their_reason() -> None:
    scores, *rest = scores_of(2, leak=4)
    scores["sima"][3, 1] = np.nan
    judgement = judged(scores, *rest, times=(100, 200))
    assert judgement.leaks and judgement.attacks["sima"].reason == "scores of 1 of 100 images are not finite"
    scores = {name: np.full_like(score, np.inf) for name, score in scores.items()}
    nothing = judged(scores, *rest, times=(100, 200))
    assert nothing.leaks is None and "not finite" in nothing.reason


def test_calibration_does_not_know_who_was_trained_on() -> None:
    rng = np.random.default_rng(0)
    score_N, difficulty_NK, order = rng.normal(size=30), rng.normal(size=(30, 3)), rng.permutation(30)
    np.testing.assert_allclose(calibrated(score_N, difficulty_NK)[order], calibrated(score_N[order], difficulty_NK[order]), atol=1e-12)
    assert not calibrated(np.ones(30), difficulty_NK).any()


# --- what is asked of networks ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", ["epsilon", "v", "flow"])
def test_the_noise_of_an_exact_prediction_is_the_noise_that_was_put_in(target: str) -> None:
    z, noise, t_B = torch.randn(3, 2, 4, 4), normal_at(1, np.arange(3), (2, 4, 4), SAMPLES), torch.tensor([1, 300, 900])
    config, scheduler = ObjectiveConfig(target=target), schedule(target)
    x_BDHW, exact = noised_at(z, noise, t_B, config, scheduler=scheduler)
    torch.testing.assert_close(noise_in(x_BDHW, t_B, exact, config, scheduler=scheduler), noise, atol=1e-5, rtol=1e-4)


def test_a_training_latent_holds_no_noise_to_one_who_knows_it(networks: dict) -> None:
    denoiser = networks["memory"][1]
    trained = denoiser.net.trained_NDHW[:3]
    seen_BT = noise_seen(denoiser, torch.cat([trained, trained + 0.3]), times=(200,)).exp()
    assert seen_BT[:3].max() < 1e-3 < 0.1 < seen_BT[3:].min()


def test_each_ring_of_frequencies_counts_alike_but_the_lowest() -> None:
    rng = torch.Generator().manual_seed(0)
    noise = torch.randn(1, 3, 32, 32, generator=rng)
    before, wave = log_error_of_rings(noise), torch.arange(32.0) * 2 * np.pi / 32
    low = log_error_of_rings(noise + 100 * torch.cos(wave))  # one cycle: of the lowest ring
    torch.testing.assert_close(low, before, atol=1e-4, rtol=0)
    torch.testing.assert_close(log_error_of_rings(10 * noise), before + 2 * np.log(10), atol=1e-4, rtol=0)
    assert log_error_of_rings(noise + 100 * torch.cos(8 * wave)) > before + 0.5
    assert log_error_of_rings(torch.zeros(2, 4, 8, 8)).isfinite().all()


# --- wrong input ------------------------------------------------------------------------------------------------------


def test_networks_of_another_dataset_or_of_other_latents_are_refused(people: Dataset, packed: Path, networks: dict) -> None:
    autoencoder, denoiser = networks["memory"]
    with pytest.raises(InputError, match="networks trained on dataset"):
        Membership(Dataset(packed), autoencoder, denoiser, CONFIG)
    with pytest.raises(InputError, match="latents of autoencoder"):
        Membership(people, autoencoder, replace(denoiser, autoencoder="b" * 64), CONFIG)
    for wrong in ({"times": (0,)}, {"times": ()}, {"people": 0}):
        with pytest.raises(InputError):
            MembershipConfig(**wrong)


def test_a_person_on_both_sides_is_refused_and_without_training_images_there_is_nothing_to_attack(tmp_path: Path, networks: dict) -> None:
    autoencoder, denoiser = networks["untrained"]
    both = {"train": (made_cube(i) for i in range(8)), "val": (made_cube(i + 7) for i in range(8))}
    write_dataset(tmp_path / "both", both, source={})
    dataset = Dataset(tmp_path / "both")
    with pytest.raises(InputError, match="1 people on both sides"):
        Membership(dataset, replace(autoencoder, data={"digest": dataset.digest}), denoiser, CONFIG)
    write_dataset(tmp_path / "alone", {"train": (made_cube(i) for i in range(8))}, source={})
    alone = Dataset(tmp_path / "alone")
    result = membership(alone, replace(autoencoder, data={"digest": alone.digest}), denoiser, CONFIG)
    assert result.judgement.leaks is None and "0 held out" in result.judgement.reason
