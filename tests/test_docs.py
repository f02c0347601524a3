"""The documentation says nothing that the program does not do: verbs, options, presets, keys, files, and the snippets run."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import typer

from data_shards.packing import pack
from data_shards.packing.existing import index_folder
from data_shards.reading.dataset import Dataset
from data_shards.reading.stream import CubeStream
from launch.cli import app
from launch.stages import STAGES
from launch.tree import load

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "benchmarks" / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
PROGRAM = typer.main.get_command(app)
TAKES_PRESET = {"run", *(stage.verb for stage in STAGES.values())}
STARTS = re.compile(r"(?<![\w/.-])retinaforge(?=\s)|-m launch(?=\s)")


def blocks(page: Path, language: str = "") -> list[str]:
    """Fenced code blocks of a page, by the word behind the fence."""
    return [code for said, code in re.findall(r"^```(\w*)\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE) if said == language]


def commands(page: Path) -> list[list[str]]:
    """The words after `retinaforge` (or `-m launch`), in code blocks and in `inline code`."""
    joined = "\n".join(blocks(page)).replace("\\\n", " ")
    prose = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    lines = [*joined.splitlines(), *(" ".join(code.split()) for code in re.findall(r"`([^`]+)`", prose))]
    inner = [re.sub(r'.*"\$\((.*)\)".*', r"\1", line) for line in lines]  # eval "$(…)"
    return [shlex.split(line[start.end() :], comments=True) for line in inner if (start := STARTS.search(line))]


def faults(words: list[str]) -> Iterator[str]:
    """What a command line says that the program does not know. Upper-case words and … stand for something."""
    command, path = PROGRAM, []
    while words and hasattr(command, "commands") and not words[0].startswith("-"):  # a group of verbs
        name, words = words[0], words[1:]
        if name == "…":
            return
        if name not in command.commands:
            yield f"no verb {' '.join([*path, name])!r}"
            return
        command, path = command.commands[name], [*path, name]
    known = {option: parameter for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}
    known |= dict.fromkeys(("--help", "-h"))
    end = words.index("--") if "--" in words else len(words)
    own, rest = words[:end], words[end + 1 :]
    given, i = [], 0
    while i < len(own):
        option = own[i].partition("=")[0]
        if option.startswith("-"):
            if option not in known:
                yield f"{' '.join(path)}: no option {option}"
            elif known[option] is not None and not known[option].is_flag and "=" not in own[i]:
                i += 1  # its value
        else:
            given.append(own[i])
        i += 1
    if " ".join(path) in TAKES_PRESET and given and not given[0].isupper() and not given[0].endswith(".yaml"):
        try:
            load(given[0], [word for word in given[1:] if "=" in word])
        except ValueError as error:
            yield f"{' '.join([*path, *given])}: {error}"
    if path == ["submit"] and rest and rest[0] != "pipeline":  # which is no verb by itself
        yield from faults(rest)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_command_that_a_page_shows_exists(page):
    wrong = [f"{shlex.join(words)}\n    {fault}" for words in commands(page) for fault in faults(words)]
    assert not wrong, "\n".join(wrong)


def test_the_check_of_commands_sees_what_is_wrong():
    for line, said in (
        ("data repack A B", "no verb 'data repack'"),
        ("data pack A B --spilts train=1", "no option --spilts"),
        ("run demoo", "unknown preset"),
        ("run demo vqgan.model.chanels=3", "chanels"),
        ("submit --nodes 2 -- train vqgan retina-225", "unknown preset"),
        ("submit --node 2 -- run demo", "no option --node"),
    ):
        assert said in "\n".join(faults(shlex.split(line))), line
    assert len(commands(ROOT / "README.md")) > 10


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_file_and_target_that_a_page_names_exists(page):
    text = page.read_text()
    named = re.findall(r"(?:launch|ldm|slurm|data_shards|tests|benchmarks)/[\w./-]+\.(?:py|yaml|md)", text)
    assert not [name for name in named if not (ROOT / name).exists()]
    targets = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"(?:^|`)make (\w+)", text, re.MULTILINE)) <= targets


def test_the_table_of_stages_is_that_of_the_program():
    page = (ROOT / "docs" / "training.md").read_text()
    for stage in STAGES.values():
        assert f"| `{stage.verb}` | {stage.reads} | {stage.writes} |" in page


def test_the_tables_that_the_readme_sends_people_to_are_there():
    named = re.findall(r"`([A-Z_]{5,})` (?:in|there)", (ROOT / "README.md").read_text())
    sources = "\n".join(path.read_text() for folder in ("data_shards", "ldm", "launch") for path in (ROOT / folder).rglob("*.py"))
    assert {"DENOISERS", "READERS", "EXTRACTORS", "CODECS"} <= set(named)
    assert all(re.search(rf"^{name}\b", sources, re.MULTILINE) for name in named)


# --- the snippets of docs/data.md, in their order ---------------------------------------------------------------------


def snippet(words: str, **places: Path) -> dict:
    """Run the one snippet that holds `words`, its places filled in; its variables."""
    (code,) = (code for code in blocks(ROOT / "docs" / "data.md", "python") if words in code)
    for name, place in places.items():
        assert name in code
        code = code.replace(name, str(place))
    variables: dict = {}
    exec(code, variables)
    return variables


def test_a_folder_written_as_the_page_says_can_be_packed(tmp_path):
    snippet("np.save", CUBES=tmp_path / "cubes")
    manifest = pack.pack(tmp_path / "cubes", tmp_path / "set")
    assert set(manifest.splits) == {"train", "val", "test"} and all(part["subjects"] for part in manifest.splits.values())
    assert sum(part["count"] for part in manifest.splits.values()) == 20


def test_stock_webdataset_reads_a_packed_set_as_the_page_says(packed):
    cubes, dataset = snippet("webdataset.WebDataset", DATASET=packed)["cubes"], Dataset(packed)
    assert set(cubes) == set(dataset.keys("train"))
    for i, key in enumerate(dataset.keys("train")):
        np.testing.assert_allclose(cubes[key], dataset.cube("train", i).data_CHW / 4095, rtol=1e-12)


def test_shards_written_as_the_page_says_can_be_indexed(tmp_path):
    snippet("TarWriter", FOLDER=tmp_path)
    assert index_folder(tmp_path).splits == {"train": {"count": 4, "subjects": 4}}
    assert int(Dataset(tmp_path).cube("train", 3).data_CHW.max()) == 300


def test_the_stream_goes_on_as_the_page_says(packed):
    batch = snippet("stream.batches", DATASET=packed)["batch"]
    batches = CubeStream(Dataset(packed), "train", batch_size=4).batches()
    assert [next(batches) for _ in range(25)][-1].keys == batch.keys
    assert batch.position == 96 and set(batch.epoch_B) == {3}
