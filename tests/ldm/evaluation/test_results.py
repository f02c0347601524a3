"""What the files of results hold stays as it is: later versions, and other programs, read those of old runs."""

from __future__ import annotations

from dataclasses import asdict, fields
from pathlib import Path

import numpy as np
import pytest
import torch

from data_shards import durable
from launch.run import read_result
from launch.stages.evaluate import FrechetOverBaseline
from ldm.authenticity import audit_result as of_audit
from ldm.authenticity import verdicts
from ldm.authenticity.audit import AuditConfig, AuditResult
from ldm.evaluation.evaluation_result import EvaluateConfig, EvaluationResult
from ldm.evaluation.health import Health, Moments, Wanted, health_of
from ldm.evaluation.mean_spectra import MeanSpectrumDistance
from ldm.evaluation.ms_ssim import BandVariety, MsSsimFigures
from ldm.evaluation.reconstruction import ReconstructionResult
from ldm.evaluation.sets import Images, ImagesOfPeople
from ldm.evaluation.space import Compared, InfinityFigures, SpaceFigures
from ldm.evaluation.spectral import RegionDistance, SpectralFigures
from ldm.evaluation.vessels import MorphometryFigure

KEYS = {
    Images: "path digest split n",
    ImagesOfPeople: "path digest split n subjects",
    EvaluationResult: """format reference synthetic floor_from config learned labelled_by spaces disagreements spectral spectra ms_ssim
        vessels floor_is whitened_by""",
    EvaluateConfig: "against limit seed extractors pairs batch_size device",
    SpaceFigures: """extractor d effective_rank effective_rank_whitened n_real people_real n_synthetic n_floor reason frechet_all frechet
        infinity kid precision recall density coverage vendi triplets no_floor""",
    SpectralFigures: "wavelengths_nm bins fov_pixels fov artery vein onh",
    RegionDistance: """kl_C js_C kl_mean kl_interval js_mean js_interval pixels_real pixels_other units_real units_other reason
        floor_kl_C floor_js_C floor_kl_mean floor_kl_interval floor_js_mean floor_js_interval kl_excess kl_excess_interval js_excess
        js_excess_interval""",
    MsSsimFigures: """window sigma_px levels data_range reason real real_interval pairs_real synthetic synthetic_interval pairs_synthetic
        floor floor_interval pairs_floor difference difference_interval difference_floor difference_floor_interval bands apart_interval""",
    BandVariety: "real synthetic floor difference difference_interval difference_floor",
    MeanSpectrumDistance: """angle_rad angle_interval floor_angle_rad floor_angle_interval sid sid_interval floor_sid floor_sid_interval
        real_C synthetic_C floor_C pixels_real pixels_synthetic pixels_floor units_real units_synthetic units_floor reason""",
    MorphometryFigure: """real synthetic floor difference difference_interval difference_floor difference_floor_interval excess
        excess_interval images_real images_synthetic images_floor units_real units_synthetic units_floor reason""",
    Compared: "value interval floor floor_interval excess excess_interval reason",
    InfinityFigures: "value standard_error floor floor_standard_error reason",
    AuditResult: "format train synthetic held_out config caveat descriptors",
    AuditConfig: "train against spaces rate limit closest backend memory_gib batch_size device",
    of_audit.SpaceVerdicts: """space d yardstick synthetic_to_train floor_to_train histogram floor_doubles flagged recognised copies ratio
        nearer_than_real closer_to_training data_copying duplicates repeated by_patient closest verdict""",
    of_audit.Quantiles: "min p1 p5 median max",
    of_audit.Histogram: "edges synthetic held_out training",
    of_audit.FloorDoubles: "images pairs",
    of_audit.AlikePair: "keys distance",
    of_audit.Flagged: "below_min images exact near beyond_chance level dimension",
    of_audit.RepeatedPair: "keys distance mirrored",
    of_audit.ByPatient: "patients patients_flagged largest_share_of_one_patient worst",
    of_audit.Patient: "subject flagged exact nearest_to least_distance",
    of_audit.ClosestPair: """synthetic_key synthetic_index train_key train_index subject distance of_floor_median p_value mirrored exact
        flagged""",
    verdicts.CopyRate: "rate wanted_rate people_for_it people threshold n below expected honest p_value copies telling visible reason",
    verdicts.Share: "value real excess_interval p_value reason",
    verdicts.CloserToTraining: "share expected honest p_value people reason",
    verdicts.DataCopying: "c_t cells p_value reason",
    verdicts.Repeats: "threshold images share exact expected p_value reason",
    ReconstructionResult: """splits cubes psnr_db mean_image_psnr_db psnr_gain_db peak_reflectance spectral_angle_rad codes_used
        codes_perplexity people ssim ssim_interval ssim_reason thin_vessel_contrast thin_vessel_contrast_interval thin_vessel_images
        thin_vessel_nm thin_vessel_reason""",
    Health: """latents samples latent_channels mean_D std_D excess_kurtosis_D spectrum_D live_directions effective_rank wanted codes_usage
        codes_perplexity warnings""",
    Wanted: "codes_usage effective_rank live_directions",
    FrechetOverBaseline: """samples gaussian_latents floor ratio ratio_floor effective_rank_whitened images people n n_floor reason""",
}


@pytest.mark.parametrize("kind", KEYS, ids=lambda kind: kind.__name__)
def test_the_keys_of_the_files_and_their_order(kind: type) -> None:
    assert [field.name for field in fields(kind)] == KEYS[kind].split()


def test_what_an_earlier_version_said_of_latents_is_read_too(tmp_path: Path) -> None:
    moments = Moments(np.zeros(2))
    moments.add(np.random.default_rng(0).normal(size=(100, 2)))
    health = health_of(moments, torch.ones(4), latents="0" * 64, samples=100)
    durable.write_json(tmp_path / "health.json", asdict(health))
    assert read_result(tmp_path / "health.json", Health) == health
    first_version = {key: value for key, value in asdict(health).items() if key not in {"latents", "live_directions", "wanted"}}
    durable.write_json(tmp_path / "health.json", first_version)
    found = read_result(tmp_path / "health.json", Health)
    assert found.effective_rank == health.effective_rank and found.latents is found.live_directions is found.wanted is None
