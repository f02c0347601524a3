"""The card of a synthetic set: README.md beside its shards, what it is and was made of, how it is read, and what it must not be used for.

Its head is that of dataset cards on the Hugging Face Hub.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

import launch
from data_shards import durable, stores
from data_shards.manifest import Manifest, read_manifest
from launch.headline import stated
from launch.run import Run, figures, read_result

NAME, SPLIT = "README.md", "synthetic"
SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"), (10_000_000, "1M<n<10M"))
NOT_STATED = "not stated: ask who made it before you pass it on (sample.licence)"
SETTINGS = (
    *("count", "seed", "sampler", "steps", "shift", "sigma_min", "cache_every", "quantise", "payload", "noise", "gate", "inference"),
    *("batch", "shard"),
)
WARNINGS = """\
- The images are a model's. They must not be used to diagnose, nor as images of a patient.
- A model learns what its training people have, and what they lack: who is rare among them is rarer here.
- Tests of distance and membership find copies that are near under their descriptors. That they find none does not show that nobody
  can be recognised."""


def write_card(run: Run) -> None:
    """Write the card of a finished set, or write it anew when more is known."""
    manifest = read_manifest(run.synthetic)
    figures_of = "\n".join(measured(run, manifest)) or "Nothing yet: `retinaforge evaluate` and `retinaforge audit`."
    text = card(manifest, f"run `{run.folder.name}`", run.config.sample.licence, figures_of)
    _publish(run.synthetic, text)


def write_decoded_card(codes: Path | str, pixels: Path) -> None:
    """Write the card of a set that was decoded from one of codes, under the licence that its card states."""
    of = f"the set of codes `{read_manifest(codes).digest}`"
    text = card(read_manifest(pixels), f"decoded from {of}", stated_licence(codes), f"Nothing of these files; of {of}, what its card says.")
    _publish(pixels, text)


def _publish(folder: Path, text: str) -> None:
    """Write a card where it says something new. A set that may not be written, another's or one on a read-only disk, keeps what it has."""
    from ldm.generation.standing import finishing

    path, content = folder / NAME, text.encode()
    if durable.holds(path, content) or not os.access(folder, os.W_OK):
        return
    with finishing(folder):  # who finishes clears up beside what is published
        durable.write_bytes(path, content)


def stated_licence(folder: Path | str) -> str:
    """The licence at the head of a set's card, '' where it has none."""
    try:
        card = stores.read_whole(stores.open_store(folder).open(NAME), stores.where(folder, NAME))
    except FileNotFoundError:
        return ""
    try:
        text = card.decode()
        head = re.match(r"---\n(.*?)\n---\n", text, re.DOTALL)
        licence = yaml.safe_load(head[1])["license"] if head else "unknown"
    except (ValueError, LookupError, TypeError, yaml.YAMLError):  # a card that somebody wrote anew
        return ""
    return licence if isinstance(licence, str) and licence != "unknown" else ""


def card(manifest: Manifest, made: str, licence: str, figures_of: str) -> str:
    """The text.

    Args:
        made: by what run, or of what.
        figures_of: what was measured of the set, as Markdown.
    """
    count = manifest.source["sample"]["count"]
    head = {
        "license": licence or "unknown",
        "tags": ["synthetic", "hyperspectral", "retina", "webdataset"],
        "size_categories": [next((word for most, word in SIZES if count < most), "n>10M")],
    }
    parts = [
        f"---\n{yaml.safe_dump(head, sort_keys=False)}---",
        f"# {count:,} synthetic hyperspectral retinal images",
        f"Made by retinaforge {launch.__version__}, {made}. Licence: {licence or NOT_STATED}.",
        "## What it holds",
        "\n".join(contents(manifest)),
        "## How it is read",
        reading(manifest),
        "## What it was made of",
        "\n".join(origin(manifest.source["sample"])),
        "## What was measured",
        figures_of,
        "## What to know",
        WARNINGS,
    ]
    return "\n\n".join(parts) + "\n"


def contents(manifest: Manifest) -> Iterator[str]:
    """Of a set of codes, what its decoder makes of them."""
    decoder = manifest.source.get("decoder")
    cubes = decoder or {key: getattr(manifest, key) for key in ("shape", "wavelengths_nm", "scale", "offset")}
    C, H, W = cubes["shape"]
    bands = ", ".join(f"{nm:g}" for nm in cubes["wavelengths_nm"])
    yield f"- {sum(s.count for s in manifest.shards):,} cubes of {C} × {H} × {W} (bands, height, width), uint16"
    if decoder:
        size = " × ".join(map(str, manifest.shape[1:]))
        yield f"- kept as codes: {size} indices below {decoder['codes']:,} for each cube, of which the autoencoder below makes its counts"
    yield f"- bands at {bands} nm"
    fov = "" if decoder else " (`fov.png`)"
    segmenter = manifest.source["sample"].get("segmenter")
    labels = f"artery, vein and optic nerve head (`labels.png`) as segmenter `{segmenter}` predicts them" if segmenter else "no labels"
    yield f"- reflectance = {cubes['scale']:g} × count + {cubes['offset']:g}, within the field of view{fov}; {labels}"
    yield f"- {len(manifest.shards):,} WebDataset shards, {sum(s.bytes for s in manifest.shards) / 1e9:.3g} GB; digest `{manifest.digest}`"
    yield "- image i has the key `%09d` of i, which stays when the set grows; `retinaforge data verify` checks every byte"


def reading(manifest: Manifest) -> str:
    """Lines that read it, with and without us."""
    if manifest.payload == "codes":
        return reading_codes(manifest)
    member = f"cube.{'raw' if manifest.payload == 'cube' else 'npy'}"
    return f"""```python
import glob, numpy, webdataset
for sample in webdataset.WebDataset(sorted(glob.glob("synthetic-*.tar")), shardshuffle=False, empty_check=False):
    cube = numpy.frombuffer(sample["{member}"], "{manifest.dtype}").reshape({manifest.shape})
```

```python
from data_shards import CubeStream, Dataset
for batch in CubeStream(Dataset("."), "synthetic", batch_size=8).once():  # torch tensors, checked
    cubes = batch.cubes_BCHW
```"""


def reading_codes(manifest: Manifest) -> str:
    """The same of a set of codes: as cubes, and as they are."""
    return f"""```python
from ldm import DecodedDataset
dataset = DecodedDataset.open(".", "RUN/vqgan")  # on a GPU: , "cuda"
for batch in dataset.stream("{SPLIT}").once():  # torch tensors, decoded on the GPU
    cubes = batch.cubes_BCHW
```

`retinaforge data decode SET OUT --autoencoder RUN/vqgan` writes a set of pixels. The codes themselves:

```python
import glob, webdataset
from pcodec import standalone
for sample in webdataset.WebDataset(sorted(glob.glob("{SPLIT}-*.tar")), shardshuffle=False, empty_check=False):
    payload = sample["codes.pcodec"]  # a table, then the codes; where they begin stands in its bytes 24 to 28
    codes = standalone.simple_decompress(payload[int.from_bytes(payload[24:28], "little") :]).reshape({manifest.shape[1:]})
```"""


def origin(source: dict[str, Any]) -> Iterator[str]:
    for what in ("dataset", "autoencoder", "denoiser"):
        yield f"- {what} `{source.get(what, 'not stated')}`"
    yield "- " + ", ".join(f"{key} {json.dumps(source[key])}" for key in SETTINGS if key in source)
    refused = source.get("refused") or {}
    yield "- refused by the gate, and made again: " + (", ".join(f"{n:,} for {cause!r}" for cause, n in refused.items()) or "none")


def measured(run: Run, manifest: Manifest) -> Iterator[str]:
    """The headline figures with what is to be said of them, and the verdicts of the audit."""
    from ldm.authenticity.audit import AuditResult
    from ldm.authenticity.membership import MembershipResult
    from ldm.evaluation.evaluation_result import EvaluationResult

    evaluated = read_result(run.folder / "evaluate.json", EvaluationResult)
    of_this_set = evaluated is not None and evaluated.synthetic.digest == manifest.digest
    for figure, value, words in stated(figures(run)) if of_this_set else ():
        if value is None:
            yield f"- {figure.title}: {words}"
        elif figure.key != "seconds":
            yield f"- {figure.title}: {figure.form.format(value)} ({words})"
    audit = read_result(run.folder / "audit.json", AuditResult)
    for name, space in audit.descriptors.items() if audit and audit.synthetic.digest == manifest.digest else ():
        yield f"- search for copies ({name}): {'; '.join(space.verdict)}"
    attacked = read_result(run.folder / "membership.json", MembershipResult)
    if attacked and attacked.denoiser == manifest.source.get("sample", {}).get("denoiser"):
        yield f"- attack on the networks: {attacked.judgement.verdict}"
