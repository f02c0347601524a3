"""The report's page: one file that needs no network, whose images are those of the set, and that says what it leaves out."""

from __future__ import annotations

import base64
import io
import json
import re
import shutil
import subprocess
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from plotly.offline import get_plotlyjs

from data_shards import durable
from data_shards.cube import Cube
from data_shards.packing.pack import write_dataset
from data_shards.packing.splits import held_out_split
from data_shards.reading.dataset import Dataset
from launch.report import samples
from launch.report.build import build_report
from launch.report.samples import shrink_by, shrunk, steps, strip
from launch.report.text import build_text
from launch.run import Run
from launch.tree import load
from ldm.evaluation.embedding import distances, plane
from ldm.evaluation.evaluate import evaluate
from ldm.evaluation.evaluation_result import EvaluateConfig
from ldm.evaluation.reconstruction import ReconstructionResult
from ldm.training.log import MetricLog
from tests.conftest import made_cube

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking")
FLAGS += ("--disable-component-update", "--disable-sync", "--virtual-time-budget=20000", "--window-size=390,844", "--dump-dom")
FLAGS += ("--host-resolver-rules=MAP * ~NOTFOUND",)  # what the browser wants for itself leads nowhere


def generated(i: int, *, labels: bool = True) -> Cube:
    """A synthetic cube of the kind that `packed` holds; the last ones are brighter than any real one."""
    cube = made_cube(500 + i)
    brighter = (cube.data_CHW.astype(np.int64) * (1 + 0.1 * (i % 4))).clip(0, 65535).astype(np.uint16)
    meta = type(cube.meta)(**{**vars(cube.meta), "key": f"{i:09d}", "subject_id": f"synthetic-{i}"})
    return Cube(data_CHW=brighter, meta=meta, labels_HW=cube.labels_HW if labels else None)


def run_of(folder: Path, packed: Path, *, synthetic: int) -> Run:
    run = Run(load("demo", [f"data.dataset={packed}", f"run={folder / 'run'}"]))
    run.folder.mkdir(parents=True)
    if synthetic:
        write_dataset(run.synthetic, {"synthetic": map(generated, range(synthetic))}, source={})
    return run


@pytest.fixture(scope="module")
def run(packed: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run with 16 synthetic images and a log, and nothing measured; its report is written."""
    of = run_of(tmp_path_factory.mktemp("page"), packed, synthetic=16)
    log = MetricLog(of.vqgan / "metrics.jsonl", writes=True)
    for samples_seen in (8, 16, 24):
        log.add(samples_seen, {"loss/l1": 1 / samples_seen, "samples_per_s": 4.0, "gan/logit_real": float("nan")})
    build_report(of)
    return of


@pytest.fixture(scope="module")
def page(run: Run) -> str:
    return (run.folder / "report.html").read_text()


def data_of(page: str, name: str) -> dict:
    """The JSON of a script element of the page."""
    return json.loads(re.search(rf'<script type="application/json" id="{name}-data">(.*?)</script>', page, re.DOTALL)[1])


def picture(uri: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))))


def test_the_page_loads_nothing_and_its_own_policy_forbids_it(page: str) -> None:
    markup = re.sub(r"<script[^>]*>.*?</script>", "", page, flags=re.DOTALL)
    assert not re.findall(r"""(?:src|href|poster|action)=["'](?!data:|#)|url\((?!data:)|@import|<link""", markup)
    assert "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:" in markup
    assert not re.findall(r"<script[^>]*\ssrc", page) and len(page) < 12e6
    assert not re.findall(r"<img(?![^>]*\salt=\"[^\"]+\")", markup), "each picture says what it shows"


def test_an_opened_image_has_the_values_of_the_cube_within_half_a_step(run: Run, page: str) -> None:
    view, compared = data_of(page, "image"), 0
    C, h, w = view["shape"]
    step_C, low_C = np.array(view["step"]), np.array(view["low"])
    for dataset, split, kind in ((run.open(run.dataset), "val", "real (val)"), (run.images(), "synthetic", "synthetic")):
        places = {f"{kind}: image {i}": i for i in range(dataset.count(split))}
        for image in (image for image in view["images"] if image["title"] in places):
            cube = dataset.cube(split, places[image["title"]])
            shown_CHW = low_C[:, None, None] + step_C[:, None, None] * picture(image["strip"]).reshape(C, h, w)
            wanted_CHW = cube.data_CHW * dataset.scale + dataset.offset
            assert (np.abs(shown_CHW - wanted_CHW) <= 0.5 * step_C[:, None, None] + 1e-6).all()
            assert np.array_equal(picture(image["labels"]), cube.labels_HW)
            compared += 1
    assert compared == len(view["images"]) == len(set(map(str, view["images"])))


def test_real_images_are_numbered_and_nobody_is_named(run: Run, page: str) -> None:
    real = run.open(run.dataset)
    keys = {key for split in real.splits for key in real.keys(split)}
    words = re.sub(r"data:image/[^\"']*", "", page.replace(get_plotlyjs(), ""))  # letters of a picture may spell anything
    assert keys and not [key for key in keys if key in words]


def test_the_worst_images_are_those_farthest_from_people_held_out(run: Run, page: str) -> None:
    listed = re.search(r"worst first.*?<ul class=\"tiles\">(.*?)</ul>", page, re.DOTALL)[1]
    found = [float(value) for value in re.findall(r"<br>([\d.e+-]+)</button>", listed)]
    assert len(found) == 8 and found == sorted(found, reverse=True)


def test_distances_are_plain_means_over_the_nearest_images_of_other_people() -> None:
    rng, people_M = np.random.default_rng(0), np.repeat(["a", "b", "c"], 3)
    synthetic_ND, held_out_MD = rng.normal(size=(5, 4)), rng.normal(size=(9, 4))
    found = distances(synthetic_ND, held_out_MD, people_M)
    apart_NM = np.linalg.norm(synthetic_ND[:, None] - held_out_MD, axis=2)
    np.testing.assert_allclose(found.synthetic_N, np.sort(apart_NM)[:, :5].mean(1))
    apart_MM = np.linalg.norm(held_out_MD[:, None] - held_out_MD, axis=2)
    apart_MM[people_M[:, None] == people_M] = np.inf
    np.testing.assert_allclose(found.real_M, np.sort(apart_MM)[:, :5].mean(1))
    assert distances(synthetic_ND, held_out_MD, np.repeat("a", 9)) is None, "one person says nothing of what is usual"


def test_the_map_is_the_same_each_time_and_has_a_picture_for_each_point(page: str) -> None:
    features_ND = np.random.default_rng(0).normal(size=(30, 6))
    assert np.array_equal(plane(features_ND), plane(features_ND))
    thumbs, traces = data_of(page, "thumb"), data_of(page, "chart")["map"]["data"]
    tiles = [tile for trace in traces for tile, _, _ in trace["customdata"]]
    height, width, _ = picture(thumbs["sheet"]).shape
    assert tiles == list(range(32 + 4 + 16)) and (height // thumbs["side"]) * (width // thumbs["side"]) >= len(tiles)
    assert {trace["name"]: trace["customdata"][0][1] for trace in traces}["real (trained on)"] == "real (trained on): image 0"


def test_every_chart_is_one_that_plotly_takes(page: str) -> None:
    from plotly.graph_objects import Figure

    charts = data_of(page, "chart")
    assert {"spectra-0", "training-0", "map"} <= set(charts)
    assert set(re.findall(r'data-chart="([^"]+)"', page)) == set(charts)
    for chart in charts.values():
        Figure(chart)


def test_what_is_not_there_yet_is_left_out_with_its_reason(page: str) -> None:
    said = re.search(r"<h2>Left out</h2><ul>(.*?)</ul>", page, re.DOTALL)[1]
    assert "Measures: the run has no evaluate.json yet" in said and "Authenticity: the run has no audit.json yet" in said
    contents = re.search(r"<nav.*?</nav>", page, re.DOTALL)[0]
    assert all(f'id="{key}"' in page for key in re.findall(r'href="#(\w+)"', contents)) and "#metrics" not in contents


def test_a_run_without_samples_shows_its_real_images_and_says_why_nothing_is_sorted(packed: Path, tmp_path: Path) -> None:
    html = build_report(run_of(tmp_path, packed, synthetic=0)).read_text()
    assert "Map of features: the run has no synthetic/dataset.json yet" in html and "worst first" not in html
    assert len(data_of(html, "image")["images"]) == 4


def test_a_set_without_labels_has_no_structures(tmp_path: Path) -> None:
    cubes = {split: [made_cube(i) for i in which] for split, which in (("train", range(8)), ("val", range(8, 12)))}
    bare = {split: [Cube(data_CHW=c.data_CHW, meta=c.meta) for c in some] for split, some in cubes.items()}
    write_dataset(tmp_path / "bare", bare, source={})
    html = build_report(run_of(tmp_path, tmp_path / "bare", synthetic=0)).read_text()
    assert "By structure: left out, the real images have no label maps" in html and data_of(html, "image")["images"][0]["labels"] is None


def test_large_cubes_are_shrunk_to_means_so_that_the_report_stays_one_file() -> None:
    by = shrink_by((16, 672, 672), 24)
    assert by > 1 and 24 * 16 * (672 // by) ** 2 <= samples.BUDGET and shrink_by((16, 96, 96), 24) == 1
    x_HW = np.arange(35.0).reshape(5, 7)
    assert np.array_equal(shrunk(x_HW, 2), [[x_HW[a : a + 2, b : b + 2].mean() for b in (0, 2, 4)] for a in (0, 2)])
    images = [np.full((2, 3, 3), 0.25, np.float32)] * 2
    low_C, step_C = steps(images)
    assert np.allclose(low_C[:, None, None] + step_C[:, None, None] * picture(strip(images[0], low_C, step_C)).reshape(2, 3, 3), images[0])


def test_the_text_keeps_within_80_columns_and_says_what_is_left_out(run: Run) -> None:
    lines = build_text(run).splitlines()
    assert max(len(line) for line in lines if "report.html" not in line) <= 80
    assert "measures: left out, the run has no evaluate.json of this version yet" in lines and lines[-1].endswith("report.html")


def test_what_one_segmenter_drew_is_shown_as_it_was_judged_and_the_text_says_what_the_page_does(packed: Path, tmp_path: Path) -> None:
    run = run_of(tmp_path, packed, synthetic=8)
    real = run.open(run.dataset)
    measured = evaluate(real, run.images(), EvaluateConfig(against=held_out_split(real), pairs=2))
    line = "the feature spaces disagree about this set"
    spectral = replace(measured.spectral, fov=replace(measured.spectral.fov, kl_excess_interval=(0.125, 0.25)))
    judged = replace(measured, labelled_by="5" * 64, disagreements=(line,), spectral=spectral)
    durable.write_json(run.folder / "evaluate.json", asdict(judged))
    html = build_report(run).read_text()
    assert "real ones too, are as segmenter 555555555555 draws them" in html
    chart, artery, order = data_of(html, "chart")["spectra-1"], measured.spectra["artery"], np.argsort(real.wavelengths_nm)
    for trace, name, mean_C in zip(chart["data"], ("real (val)", "synthetic"), (artery.real_C, artery.synthetic_C), strict=True):
        assert trace["name"].startswith(name) and trace["y"] == pytest.approx(np.array(mean_C)[order].tolist())
    assert "0.125 … 0.25" in build_text(run) and "[0.125, 0.25]" in html, "on which a verdict rests"
    rebuilt = ReconstructionResult(
        splits=("val",),
        cubes=4,
        psnr_db=31.0,
        mean_image_psnr_db=20.0,
        psnr_gain_db=11.0,
        peak_reflectance=0.3,
        spectral_angle_rad=0.05,
        codes_used=0.5,
        codes_perplexity=9.0,
        ssim=0.875,
        ssim_interval=(0.85, 0.9),
        thin_vessel_reason="no band near 555 nm",
    )
    durable.write_json(run.folder / "reconstruction.json", asdict(rebuilt))
    text = build_text(run)
    assert line in text and re.search(r"SSIM +0.875", text) and "0.85 … 0.9" in text and "left out: no band near 555 nm" in text
    assert max(len(words) for words in text.splitlines() if "report.html" not in words) <= 80


WATCH = """<script>
var blocked = [], errors = [];
document.addEventListener("securitypolicyviolation", (event) => blocked.push(event.blockedURI));
addEventListener("unhandledrejection", (event) => errors.push(String(event.reason)));
addEventListener("error", (event) => errors.push(event.message));
</script>"""
LOOK = """
<pre id="seen"></pre><script>
(async () => {
  const pause = (ms) => new Promise((go) => setTimeout(go, ms)), { blocked, errors } = window;
  const dialog = document.getElementById("viewer"), part = (name) => dialog.querySelector(`[data-part=${name}]`);
  const drawn = () => part("image").toDataURL(), spectrum = () => Array.from(part("spectrum").data[1].y);
  document.querySelector("[data-image]").click();
  await pause(1500);
  const overflow = document.documentElement.scrollWidth - innerWidth;
  const seen = { opened: dialog.open, title: part("title").textContent, colour: drawn(), overflow };
  part("band").value = 0; part("band").dispatchEvent(new Event("input")); await pause(500);
  seen.first = drawn(); seen.firstSaid = part("wavelength").textContent;
  part("band").value = part("band").max; part("band").dispatchEvent(new Event("input")); await pause(500);
  seen.last = drawn(); seen.lastSaid = part("wavelength").textContent;
  const box = part("image").getBoundingClientRect();
  const at = { clientX: box.left + box.width * 0.42, clientY: box.top + box.height * 0.63 };
  part("image").dispatchEvent(new PointerEvent("pointermove", at));
  await pause(500);
  seen.spectrum = spectrum(); seen.pixel = part("pixel").textContent;
  part("image").dispatchEvent(new KeyboardEvent("keydown", { key: "ArrowRight" })); await pause(500);
  seen.moved = part("pixel").textContent;
  part("next").click(); await pause(1000);
  seen.nextTitle = part("title").textContent;
  Object.assign(seen, { blocked, errors, charts: document.querySelectorAll("[data-chart] .main-svg").length });
  document.getElementById("seen").textContent = JSON.stringify(seen);
})();
</script></body>"""


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine: apt-get install chromium")
def test_a_browser_opens_an_image_runs_through_its_bands_and_asks_no_network(run: Run, page: str, tmp_path: Path) -> None:
    (tmp_path / "look.html").write_text(page.replace("</head>", WATCH + "</head>", 1).replace("</body>\n</html>", LOOK))
    words = [CHROMIUM, *FLAGS, f"--user-data-dir={tmp_path / 'profile'}", f"--log-net-log={tmp_path / 'net.json'}"]
    done = subprocess.run([*words, (tmp_path / "look.html").as_uri()], capture_output=True, text=True, timeout=120, check=False)
    seen = json.loads(re.search(r'<pre id="seen">(.+?)</pre>', done.stdout, re.DOTALL)[1].replace("&amp;", "&"))
    asked = re.findall(r'"initiator":"([^"]+)"[^{}]*"url":"(?:https?|wss?)://', (tmp_path / "net.json").read_text())
    assert not seen["blocked"] and not seen["errors"]
    assert set(asked) <= {"not an origin"}, "a browser asks for its own updates, the page for nothing"
    assert seen["opened"] and seen["charts"] >= 3 and seen["overflow"] <= 0, "a narrow page is not scrolled sideways"
    assert len({seen["colour"], seen["first"], seen["last"]}) == 3, "each position of the slider draws another picture"
    assert (seen["firstSaid"], seen["lastSaid"]) == ("500 nm", "560 nm")
    dataset, shown = Dataset(run.dataset), int(seen["title"].removeprefix("real (val): image "))
    cube, step_C = dataset.cube("val", shown), np.array(data_of(page, "image")["step"])
    x, y = map(int, re.match(r"pixel (\d+), (\d+)", seen["pixel"]).groups())
    assert (np.abs(np.array(seen["spectrum"]) - cube.data_CHW[:, y, x] * dataset.scale) <= 0.5 * step_C + 1e-6).all()
    assert (x, y) == (13, 20) and seen["moved"].startswith("pixel 14, 20") and seen["nextTitle"] != seen["title"]
