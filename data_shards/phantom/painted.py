"""Real anatomy, phantom optics: vessels and nerve heads of labelled photographs, painted at any wavelengths and size.

Legend: H W pixels of the photograph, S S pixels of the raster painted on.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.ndimage import distance_transform_edt, map_coordinates
from skimage.morphology import convex_hull_image, skeletonize

from data_shards import durable
from data_shards.cube import LABELS, Cube
from data_shards.errors import InputError
from data_shards.phantom.camera import FIELD_SHARE, render
from data_shards.phantom.drawing import REFLEX_SHARE, VEIN_REFLEX, chord_px
from data_shards.phantom.eyes import FINE_RASTER, LooseCubes, Watch, label_map, meta_of
from data_shards.phantom.eyes import mean_over as mean
from data_shards.phantom.fundus import layers, make_fundus
from data_shards.phantom.persons import TEXTURE, PhantomConfig, person, stream, view
from data_shards.phantom.spectra import Tissue
from data_shards.phantom.vessels import MM_PER_DEGREE, Disc
from data_shards.reading.dataset import cubes_of
from data_shards.vessel_lines import centre_lines, with_lines

DISC_MM = 1.83  # mean diameter of the nerve head, Quigley et al. 1990
PHOTOGRAPH_DEGREES = 45.0  # the usual fundus camera, where no nerve head gives the scale


@dataclass(frozen=True, kw_only=True)
class Frame:
    """Where the painted image lies in the photograph.

    Attributes:
        top, left, side: the square in pixels of the photograph, from its first pixel's outer edge; it may overhang.
        mm: size of a pixel of the photograph on the retina. disc_row, disc_column: centre of the nerve head, or a guess.
        right: True where the nerve head lies to the right, as in a right eye.
    """

    top: float
    left: float
    side: float
    mm: float
    disc_row: float
    disc_column: float
    right: bool


def frame_of(labels_HW: np.ndarray, fov_HW: np.ndarray, eye: str, size: int) -> Frame:
    """Square around the field of view; scale and side from the nerve head where one is labelled."""
    rows, columns = np.flatnonzero(fov_HW.any(1)), np.flatnonzero(fov_HW.any(0))
    width = max(rows[-1] - rows[0], columns[-1] - columns[0]) + 1
    middle = (rows[0] + rows[-1] + 1) / 2, (columns[0] + columns[-1] + 1) / 2
    side, top, left = width / FIELD_SHARE, 0.0, 0.0
    if labels_HW.shape == (size, size):
        side = float(size)  # already what is asked for: not a pixel moves
    else:
        top, left = middle[0] - side / 2, middle[1] - side / 2
    onh = np.argwhere(labels_HW == LABELS["onh"])
    if len(onh):
        low, high = onh.min(0), onh.max(0) + 1
        mm = float(np.clip(DISC_MM / (high - low).max(), 15 * MM_PER_DEGREE / width, 60 * MM_PER_DEGREE / width))
        row, column = (low + high - 1) / 2
        right = eye == "OD" if eye else column > middle[1]
    else:
        mm, right = PHOTOGRAPH_DEGREES * MM_PER_DEGREE / width, eye != "OS"
        row, column = middle[0] - 0.5 / mm, middle[1] + (4.5 if right else -4.5) / mm
    return Frame(top=top, left=left, side=side, mm=mm, disc_row=float(row), disc_column=float(column), right=right)


def _sampler(frame: Frame, pixels: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows and columns of the photograph at the pixels of an S S raster over the frame."""
    at = (np.arange(pixels) + 0.5) * (frame.side / pixels) - 0.5
    return np.meshgrid(at + frame.top, at + frame.left, indexing="ij")


def outline(mask_HW: np.ndarray, at: tuple[np.ndarray, np.ndarray], step: float) -> np.ndarray:
    """Share of each raster pixel that lies in a mask, float32 (S, S): the mask's edge is drawn half way between pixels.

    Args:
        at: rows and columns of the photograph. step: pixels of the photograph in one of the raster.
    """
    if not mask_HW.any():
        return np.zeros(at[0].shape, np.float32)
    padded = np.pad(mask_HW, 1)
    signed = np.where(padded, distance_transform_edt(padded) - 0.5, 0.5 - distance_transform_edt(~padded)).astype(np.float32)
    sampled = map_coordinates(signed, (at[0] + 1, at[1] + 1), order=1, mode="nearest", output=np.float32)
    return np.clip(sampled / step + 0.5, 0, 1)


def lumen(mask_HW: np.ndarray, at: tuple[np.ndarray, np.ndarray], step: float) -> tuple[np.ndarray, np.ndarray]:
    """Path through the lumen in pixels of the photograph, and share of the central light reflex; both float32 (S, S).

    Vessels are taken as round, with the radius found at the nearest centre line.
    """
    if not mask_HW.any():
        return np.zeros(at[0].shape, np.float32), np.zeros(at[0].shape, np.float32)
    inside_px = distance_transform_edt(np.pad(mask_HW, 1))[1:-1, 1:-1]
    _, nearest = distance_transform_edt(~skeletonize(mask_HW), return_indices=True)
    radius_px = np.maximum(inside_px[tuple(nearest)], 0.5)
    maps = radius_px, np.clip(radius_px - inside_px, 0, radius_px)
    radius, distance = (map_coordinates(field_HW.astype(np.float32), at, order=1, mode="nearest", output=np.float32) for field_HW in maps)
    core = REFLEX_SHARE * radius
    return chord_px(radius, distance), np.clip(np.minimum((core - distance) / step + 0.5, 2 * core / step), 0, 1)


def paint_tissue(config: PhantomConfig, labels_HW: np.ndarray, frame: Frame, number: int, age_years: float) -> Tissue:
    """The photograph's vessels and nerve head over a phantom's macula, pigment and choroid."""
    finer = max(1, -(-FINE_RASTER // config.size))
    pixels = finer * config.size
    at, step = _sampler(frame, pixels), frame.side / pixels
    sign = 1.0 if frame.right else -1.0
    onh_HW = labels_HW == LABELS["onh"]
    if onh_HW.any():
        onh_HW = convex_hull_image(onh_HW)  # vessels lie on top of it in a label map
        half = (np.ptp(np.argwhere(onh_HW), axis=0) + 1) / 2 * frame.mm
    else:
        half = (0.94, 0.88)
    disc = Disc(x_mm=4.5, y_mm=0.5, half_width_mm=float(half[1]), half_height_mm=float(half[0]))
    x_mm = disc.x_mm + sign * (at[1] - frame.disc_column) * frame.mm
    y_mm = disc.y_mm - (at[0] - frame.disc_row) * frame.mm
    fundus = make_fundus(stream(config.seed, number, int(frame.right), TEXTURE), disc, age_years)
    rest = layers(fundus, x_mm.astype(np.float32), y_mm.astype(np.float32))
    rest["onh"] = outline(onh_HW, at, step)
    rest["cup"] = rest["cup"] * rest["onh"]
    drawn: dict[str, np.ndarray] = {}
    reflexes = []
    for kind in ("artery", "vein"):
        mask_HW = labels_HW == LABELS[kind]
        covered, (path_px, reflex) = outline(mask_HW, at, step), lumen(mask_HW, at, step)
        drawn[kind] = mean(covered, finer)
        drawn[f"{kind}_mm"] = mean(covered * path_px, finer) * frame.mm / np.maximum(drawn[kind], 1e-6)
        reflexes.append(mean(covered * reflex, finer))
    return Tissue(
        **drawn,
        reflex=np.maximum(reflexes[0], VEIN_REFLEX * reflexes[1]),
        mm_per_pixel=frame.mm * step * finer,
        **{name: mean(field_SS, finer) for name, field_SS in rest.items()},
    )


def _drawn_labels(tissue: Tissue, fov_SS: np.ndarray, labels_HW: np.ndarray, frame: Frame) -> np.ndarray:
    """The labels of what was drawn; on a coarser raster than the photograph's, vessels too thin for it stay whole lines."""
    labels_SS = label_map(tissue, fov_SS)
    if frame.side <= len(labels_SS):
        return labels_SS
    lines_SS = np.zeros(labels_SS.shape, bool)
    scale = len(labels_SS) / frame.side
    rows, columns = (
        np.floor((pixels + 0.5 - first) * scale).astype(int)
        for pixels, first in zip(centre_lines(labels_HW), (frame.top, frame.left), strict=True)
    )
    within = (np.minimum(rows, columns) >= 0) & (np.maximum(rows, columns) < len(labels_SS))
    lines_SS[rows[within], columns[within]] = True
    vessels_SS = with_lines(np.isin(labels_SS, (LABELS["artery"], LABELS["vein"])), lines_SS & fov_SS)
    kind_SS = np.where(tissue.artery >= tissue.vein, LABELS["artery"], LABELS["vein"])
    background_SS = np.where((tissue.onh >= 0.5) & fov_SS, LABELS["onh"], LABELS["background"])
    return np.where(vessels_SS, kind_SS, background_SS).astype(np.uint8)


def paint_labels(
    config: PhantomConfig,
    labels_HW: np.ndarray,
    fov_HW: np.ndarray | None = None,
    *,
    number: int,
    visit: int = 0,
    key: str,
    subject_id: str,
    eye: str = "",
    notes: dict[str, Any] | None = None,
) -> Cube:
    """One cube with the vessels and the nerve head of a label map, of any size; a pure function of its arguments.

    Args:
        labels_HW: uint8 of the classes in LABELS. fov_HW: bool; None for all of the image.
        number: of the person whose blood and pigments are drawn. visit: light, focus and noise; the anatomy does not move.
        key, subject_id, eye: for the metadata; an eye '' is guessed from where the nerve head lies, for the macula's place.
        notes: kept in the metadata.

    Raises:
        InputError: no artery or no vein in the labels, or an empty field of view.
    """
    fov_HW = np.ones(labels_HW.shape, bool) if fov_HW is None else fov_HW
    missing = [name for name in ("artery", "vein") if not (labels_HW == LABELS[name]).any()]
    if missing or not fov_HW.any():
        raise InputError(
            f"no pixel labelled {' or '.join(missing)}" if missing else "an empty field of view",
            where=key,
            expected="labels of arteries and veins, from which to paint",
            mend="retinaforge data import … --labels DIR --label-map 0=background,1=artery,2=vein",
        )
    frame = frame_of(labels_HW, fov_HW, eye, config.size)
    who, seen = person(config, number), view(config, number, int(frame.right), visit)
    tissue = paint_tissue(config, labels_HW, frame, number, who.age_years)
    same = labels_HW.shape == (config.size, config.size)
    fov = fov_HW if same else outline(fov_HW, _sampler(frame, config.size), frame.side / config.size) >= 0.5
    labels = labels_HW if same else _drawn_labels(tissue, fov, labels_HW, frame)
    data_CHW = render(tissue, who, seen, fov, (config.seed, number, int(frame.right), visit), config)
    how = (
        "as they are" if same else f"{labels_HW.shape[0]}x{labels_HW.shape[1]} to {config.size}x{config.size} by share of the pixel covered"
    )
    square = [round(float(v), 2) for v in (frame.top, frame.left, frame.side)]
    painted = {"labels": how, "square_top_left_side_px": square, "mm_per_pixel": round(float(tissue.mm_per_pixel), 6)}
    meta = meta_of(config, who, key=key, subject_id=subject_id, eye=eye, visit=visit, anatomy=painted, **(notes or {}))
    return Cube(data_CHW=data_CHW, meta=meta, labels_HW=labels, fov_HW=fov)


class Painted(LooseCubes):
    """The vessels and nerve head of every cube of a loose folder or packed dataset, painted, in units of one of them.

    Raises:
        InputError: a source without labels of arteries and veins (on making); and as LooseCubes.
    """

    def __init__(self, config: PhantomConfig, source: Path, out: Path, *, visits: int = 1) -> None:
        self.config, people, digest, units = config, {}, hashlib.sha256(), {}
        self.anatomies: list[tuple[np.ndarray, np.ndarray | None, dict[str, Any]]] = []
        for cube in cubes_of(source):
            number = people.setdefault(cube.meta.subject_id, len(people))
            labels_HW = np.zeros(cube.data_CHW.shape[1:], np.uint8) if cube.labels_HW is None else cube.labels_HW
            kept = {"anatomy_key": cube.meta.key, **{name: cube.meta.notes[name] for name in ("split",) if name in cube.meta.notes}}
            paint = {"number": number, "subject_id": cube.meta.subject_id, "eye": cube.meta.eye, "notes": kept}
            self.anatomies.append((labels_HW, cube.fov_HW, paint))
            units[painted_key(cube.meta.key, 0)] = [painted_key(cube.meta.key, visit) for visit in range(visits)]
            fov = b"" if cube.fov_HW is None else cube.fov_HW.tobytes()
            digest.update(durable.canonical_json([cube.meta.key, paint]) + labels_HW.tobytes() + fov)
        super().__init__(out, {"phantom": config.record(), "anatomy": digest.hexdigest()}, units)

    def cube(self, number: int, visit: int) -> Cube:
        labels_HW, fov_HW, paint = self.anatomies[number]
        return paint_labels(self.config, labels_HW, fov_HW, key=self.keys[number][visit], visit=visit, **paint)


def write_painted(config: PhantomConfig, source: Path, out: Path, *, visits: int = 1, watch: Watch = iter) -> int:
    """Paint by this process alone; how many cubes were written now."""
    return Painted(config, source, out, visits=visits).complete(watch)


def painted_key(key: str, visit: int) -> str:
    """As 21_training-v0. Keys end at 63 letters, so a long name is cut and a hash keeps it unlike the others."""
    named = f"{key}-v{visit}"
    return named if len(named) <= 63 else f"{key[:48]}-{hashlib.sha256(key.encode()).hexdigest()[:8]}-v{visit}"
