"""Which label file or mask belongs to which image: by names alone, and never by a guess."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from data_shards.cube import KEY
from data_shards.errors import InputError
from data_shards.formats.faults import refuse_absent_links
from data_shards.formats.other_kinds import conversion_of, kinds_of
from data_shards.formats.raw import listing


def composed(name: str) -> str:
    """A name in one Unicode form (NFC): a Mac writes e and its accent as two signs, other systems as one."""
    return unicodedata.normalize("NFC", name)


def tokens(stem: str) -> list[str]:
    """A name cut at everything that is neither a letter nor a digit, of whatever script."""
    return [token for token in re.split(r"[\W_]+", composed(stem)) if token]


def compiled(pattern: str, option: str) -> re.Pattern[str]:
    """A regular expression of the user's."""
    try:
        return re.compile(pattern)
    except re.error as error:
        raise InputError(
            f"{pattern!r} is no regular expression: {error}",
            where=option,
            expected="a group for what names the image",
            mend=f"{option} '^([0-9]+)_'",
        ) from error


def stem_of(image: Path) -> str:
    """The name without suffix; a folder that is one cube has none."""
    return image.name if image.is_dir() else image.stem


def keys_of(images: Sequence[Path]) -> dict[Path, str]:
    """A sample key for every image: see `_key`.

    Raises:
        InputError: two images with one key, or a name that cannot be a key.
    """
    keys = {image: _key(stem_of(image)) for image in images}
    seen: dict[str, Path] = {}
    for image, key in keys.items():
        if not KEY.fullmatch(key):
            raise InputError(
                f"sample key {key!r} is not allowed", where=image, expected="at most 63 letters, digits, '_', '-'", mend="rename the file"
            )
        if key in seen:
            one_kind = f", or --pattern '*{image.suffix}' to take one of two kinds" if image.suffix != seen[key].suffix else ""
            raise InputError(
                f"two images with the key {key!r}: {seen[key]} and {image}",
                expected="one key for each, by its name without the suffix",
                mend=("rename one" if image.parent == seen[key].parent else "rename one, or import each folder by itself") + one_kind,
            )
        seen[key] = image
    return keys


def _key(stem: str) -> str:
    """The name with '_' for what a key may not hold. Letters beyond ASCII lose their marks, or are left out; a digest keeps them apart."""
    if stem.isascii():
        return re.sub(r"[^A-Za-z0-9_-]", "_", stem)
    bare = "".join(sign for sign in unicodedata.normalize("NFKD", stem) if not unicodedata.combining(sign))
    return re.sub(r"[^\x00-\x7f]+|[^A-Za-z0-9_-]", "_", bare) + "-" + hashlib.sha256(stem.encode(errors="surrogateescape")).hexdigest()[:8]


def listed(where: str, suffixes: Iterable[str], option: str) -> list[Path]:
    """Files of a folder or of a quoted glob, with one of the suffixes, sorted."""
    folder, pattern = (Path(where), "*") if Path(where).is_dir() else (Path(where).parent, Path(where).name)
    there = listing(folder, pattern) if folder.is_dir() else []
    files = [file for file in there if file.suffix.lower() in suffixes]
    refuse_absent_links(files)
    if not files:
        raise InputError(
            f"no files for {option}" + (f", but {kinds_of(there)}" if there else ""),
            where=where,
            expected=f"a folder or a quoted glob with files {' '.join(suffixes)}",
            mend=_map_conversion(there, option) if there else f"check the folder, or quote the glob: {option} 'DIR/*.png'",
        )
    return files


def _map_conversion(files: Sequence[Path], option: str) -> str:
    """As `conversion_of`; a JPEG has lost what a label map holds, so no conversion is advised."""
    if all(file.suffix.lower() in (".jpg", ".jpeg") for file in files):
        return f"export the maps of {option} anew as PNG: JPEG changes values, and converting keeps the change"
    return conversion_of(files)


class _Claim(NamedTuple):
    """A file that may belong to an image, by so many leading words that both names share, and all images that it fits so well."""

    shared: int
    file: Path
    owners: Sequence[Path]


def pair(images: Sequence[Path], files: Sequence[Path], *, option: str, match: str = "", allow_missing: bool = False) -> dict[Path, Path]:
    """The one file that belongs to each image.

    Without `match`, names are cut into words at punctuation, and a file belongs to the image with which it shares the
    most leading words: '21_training_mask.gif' to '21_training.tif', '01_h_AVmanual.png' to '01_h.jpg'. The shared words
    must hold every word of the image's name that has a digit (all of its words where none has), and no other file may
    share as many. With `match`, a regular expression, both names must give the same first group.

    Raises:
        InputError: an image with no file (unless `allow_missing`) or with several, or a file with several images.
    """
    image_words = {image: _words(image, match) for image in images}
    by_words: dict[tuple[str, ...], list[Path]] = {}
    for image, words in image_words.items():
        if not words:
            raise InputError(
                f"--match {match!r} does not fit the name", where=image, expected="a first group in every name", mend="--match '^([0-9]+)_'"
            )
        for count in range(_telling(words), len(words) + 1):
            by_words.setdefault(tuple(words[:count]), []).append(image)
    claims: dict[Path, list[_Claim]] = {image: [] for image in images}
    for file in files:
        words = _words(file, match)
        count = next((n for n in range(len(words), 0, -1) if tuple(words[:n]) in by_words), 0)
        owners = by_words.get(tuple(words[:count]), [])
        for image in owners:
            claims[image].append(_Claim(count, file, owners))
    file_of = {image: _only_claim(image, claims[image], files[0].parent, option, allow_missing) for image in images}
    return {image: file for image, file in file_of.items() if file is not None}


def _words(path: Path, match: str) -> list[str]:
    """The words that identify a file: those of its stem, or what --match finds as one word; [] where it finds nothing."""
    if not match:
        return tokens(stem_of(path))
    fits = compiled(match, "--match").search(composed(path.name))
    word = fits and (fits[1] if fits.re.groups else fits[0])
    return [word] if word else []


def _telling(words: Sequence[str]) -> int:
    """How many leading words must be shared before they name one image: up to the last with a digit, or all of them."""
    return max((i for i, word in enumerate(words, 1) if re.search(r"\d", word)), default=len(words))


def _only_claim(image: Path, claims: Sequence[_Claim], folder: Path, option: str, allow_missing: bool) -> Path | None:
    """The file with most words in common, where there is exactly one and it belongs to no other image as well."""
    if not claims and allow_missing:
        return None
    if not claims:
        raise InputError(
            f"no partner in {option}",
            where=image,
            expected=f"a file whose name begins like {image.stem!r} in {folder}",
            mend="add the file, or --allow-missing, or --match REGEX",
        )
    most = max(claim.shared for claim in claims)
    best = [claim for claim in claims if claim.shared == most]
    file, owners = best[0].file, best[0].owners
    if len(best) > 1 or len(owners) > 1:
        names = [claim.file.name for claim in best] if len(best) > 1 else [f"{file.name} also fits {o.name}" for o in owners if o != image]
        raise InputError(
            f"several partners in {option}: {', '.join(names[:5])}",
            where=image,
            expected="one file for each image",
            mend=f"{option} 'DIR/*_manual.png' (a quoted glob), or --match REGEX",
        )
    return file
