"""What an import made, in numbers and words, from the notes of its samples."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from data_shards.cube import CubeMeta
from data_shards.importing import people
from data_shards.importing.config import ImportConfig, Item
from data_shards.importing.planning import find_images


@dataclass(frozen=True, kw_only=True)
class ImportSummary:
    """What stands in OUT at the end.

    Attributes:
        cubes, written: samples in OUT, and how many of them this run wrote.
        values: what was made of the files' values, in words: how they are stored, what is no-data, which bands are left out.
        assumed: who was taken for a person, where nobody said.
        sizes: (H, W) to count. label_share: class to share of all labelled pixels. with_maps: map to count of cubes that have it.
        joined: subjects with images in several folders of the source.
    """

    cubes: int
    written: int
    wavelengths_nm: tuple[float, ...]
    sizes: dict[tuple[int, int], int]
    subjects: int
    splits: dict[str, int]
    label_share: dict[str, float]
    with_maps: dict[str, int]
    pairs: dict[str, str]
    ignored: list[str]
    assumed: str
    joined: list[str]
    values: list[str]


def summarise(config: ImportConfig, items: Sequence[Item], metas: Mapping[str, CubeMeta], *, written: int) -> ImportSummary:
    """The summary of a finished import, from the notes of each sample, by its key."""
    notes = [meta.notes for meta in metas.values()]
    pixels, with_maps = Counter(), Counter()
    for note in notes:
        pixels.update(note.get("label_pixels", {}))
    for item in items:
        with_maps.update(sorted(item.maps))
        with_maps.update(["onh circle"] if item.circle else [])
    return ImportSummary(
        cubes=len(items),
        written=written,
        wavelengths_nm=next(iter(metas.values())).wavelengths_nm,
        sizes=dict(Counter((note["shape"][1], note["shape"][2]) for note in notes)),
        subjects=len({item.person.subject_id for item in items}),
        splits=dict(Counter(item.person.split for item in items if item.person.split)),
        label_share={name: count / pixels.total() for name, count in pixels.items()},
        with_maps=dict(with_maps),
        pairs={f"--{role}": f"{items[0].image.name} with {file.name}" for role, file in items[0].maps.items()},
        ignored=find_images(config)[1],
        assumed=people.assumed([item.image for item in items], table=config.subjects, pattern=config.subject_pattern),
        values=_values_in_words(list(metas.values())),
        joined=_joined(config, items),
    )


def _joined(config: ImportConfig, items: Sequence[Item]) -> list[str]:
    """Subjects with images in several folders, where names say who they are: two people may bear one number."""
    if config.subjects:
        return []
    folders: dict[str, set[Path]] = {}
    for item in items:
        folders.setdefault(item.person.subject_id, set()).add(item.image.parent)
    return sorted(subject for subject, where in folders.items() if len(where) > 1)


def _values_in_words(metas: Sequence[CubeMeta]) -> list[str]:
    """How values are stored, the pixels that count as no-data, and the bands that were left out, over all samples."""
    first = metas[0]
    words = [f"reflectance = {first.scale:.6g} * stored {'-' if first.offset < 0 else '+'} {abs(first.offset):.6g}"]
    no_data = [meta.notes["no_data"]["pixels"] for meta in metas if "no_data" in meta.notes]
    if pixels := sum(no_data):
        words.append(f"{pixels} pixels of {sum(map(bool, no_data))} images hold no-data and leave the field of view")
    if left_out := first.notes.get("bands_left_out"):
        words.append(f"bands {', '.join(map(str, left_out['bands_from_1']))} left out by {left_out['by']}")
    return words
