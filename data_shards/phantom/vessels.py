"""Artery and vein trees of the phantom: they leave the optic nerve head, arch around the fovea and branch by Murray's law.

Legend: N points along a branch, H W pixels. Lengths in mm on the retina of a right eye, the fovea at (0, 0), x towards
the nose (where the optic nerve head lies), y upwards. Angles in radians unless the name says degrees.

Trunks follow the mean paths of nerve fibre bundles (Jansonius et al., Vision Research 49, 2009), which the great vessels
keep to; their calibres are those of Knudtson et al. 2003 (Current Eye Research 27): six largest arterioles of about 100
to 120 µm, venules of about 130 to 150 µm, a ratio near 2 : 3.
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

MM_PER_DEGREE = 0.29  # Bennett, Rudnicka & Edgar 1994, for an axial length of 24 mm
STEP_MM = 0.05
LOOK_COS, LOOK_SIN = math.cos(0.6), math.sin(0.6)  # growing vessels look 0.6 rad to either side
CELL_MM = 0.06
CENTRE_MM = (2.25, 0.2)  # middle of the field of view, between fovea and nerve head
REACH_MM = 5.8  # growth ends this far from it in x and y, outside every field of view
THINNEST_MM = 0.0085  # radius; below lie capillaries, which no fundus camera resolves
FAZ_MM = 0.28  # radius of the foveal avascular zone


@dataclass(frozen=True, kw_only=True)
class Disc:
    """The optic nerve head: centre and half axes."""

    x_mm: float
    y_mm: float
    half_width_mm: float
    half_height_mm: float


@dataclass(frozen=True, kw_only=True)
class Branch:
    """One vessel from branch point to branch point.

    Attributes:
        points_mm: (N, 2); radius_mm: (N,), falling along the branch.
        parent: index in the tree, -1 for the central vessel; children: none, or two.
    """

    points_mm: np.ndarray
    radius_mm: np.ndarray
    parent: int
    children: tuple[int, ...]


def bundle_path_mm(start_degrees: float, disc: Disc) -> np.ndarray:
    """Mean path of the nerve fibre bundle that meets the disc at an angle (0 nasal, 90 up, ±180 temporal), (N, 2).

    Jansonius et al. 2009 (erratum 2010), nasal part Jansonius et al. 2012: in polar coordinates around the disc, in
    degrees of visual angle, φ(r) = φ0 + b(φ0) (r − 4°)^c(φ0).
    """
    start = start_degrees
    if start >= 0:
        c = 1.9 + 1.4 * math.tanh((start - 121) / 14)
        b = math.exp(-1.9 + 3.9 * math.tanh(-(start - 121) / 14))
    else:
        c = 1.0 + 0.5 * math.tanh((-start - 90) / 25)
        b = -math.exp(0.7 + 1.5 * math.tanh(-(-start - 90) / 25))
    if abs(start) < 60:
        b = 0.00083 * start**2 + 0.020 * start - 2.65
    r = np.arange(4.0, 36.0, 0.5)
    angle = np.radians(start + np.clip(b * (r - 4.0) ** c, -75, 75))
    return np.stack([disc.x_mm + MM_PER_DEGREE * r * np.cos(angle), disc.y_mm + MM_PER_DEGREE * r * np.sin(angle)], 1)


@dataclass(frozen=True, kw_only=True)
class _Bud:
    """A branch about to grow.

    Attributes:
        path_mm: what a trunk pursues; others find their way.
        forks: the first branches, laid out in advance; where they begin shows when their parent has grown.
        length: 0: drawn when it grows.
        side: +1 (left) or -1: on which side of its parent it left.
    """

    heading: float
    radius: float
    x: float = 0.0
    y: float = 0.0
    parent: int = -1
    grandparent: int = -1
    path_mm: np.ndarray | None = None
    forks: tuple[_Bud, _Bud] | None = None
    length: float = 0.0
    side: int = 1


class _Ground:
    """Which branch of either kind passes first through each cell."""

    def __init__(self) -> None:
        self.cells: tuple[dict[int, int], dict[int, int]] = ({}, {})

    def taken(self, kind: int, x: float, y: float, own: tuple[int, ...]) -> bool:
        branch = self.cells[kind].get(int((y + 20) / CELL_MM) * 4096 + int((x + 20) / CELL_MM))
        return branch is not None and branch not in own

    def take(self, kind: int, x: float, y: float, branch: int) -> None:
        self.cells[kind].setdefault(int((y + 20) / CELL_MM) * 4096 + int((x + 20) / CELL_MM), branch)


def inside(x: float, y: float) -> bool:
    """Whether vessels grow there."""
    return abs(x - CENTRE_MM[0]) < REACH_MM and abs(y - CENTRE_MM[1]) < REACH_MM


def murray_angles(parent: float, first: float, second: float) -> tuple[float, float]:
    """Angles of the two daughters to the parent's direction for the least work (Murray 1926; Zamir 1976)."""

    def angle(a: float, b: float) -> float:
        return math.acos(max(-1.0, min(1.0, (parent**4 + a**4 - b**4) / (2 * parent**2 * a**2))))

    return angle(first, second), angle(second, first)


class _Grower:
    """Grows both trees together, thickest bud first, so that great vessels have the right of way."""

    def __init__(self, rng: np.random.Generator, disc: Disc, tortuosity: float) -> None:
        self.rng, self.disc, self.tortuosity, self.ground = rng, disc, tortuosity, _Ground()
        self.trees: tuple[list[Branch], list[Branch]] = ([], [])
        self.normals = iter(())
        self.order = itertools.count()

    def normal(self) -> float:
        """Numbers are drawn in blocks: one call of numpy's for each would take most of the time."""
        for value in self.normals:
            return value
        self.normals = iter(self.rng.standard_normal(4096).tolist())
        return next(self.normals)

    def uniform(self, low: float, high: float) -> float:
        return low + (high - low) * 0.5 * math.erfc(-self.normal() / math.sqrt(2))

    def grow_all(self, roots: list[tuple[int, _Bud]]) -> None:
        queue = [(-bud.radius, next(self.order), kind, bud) for kind, bud in roots]
        heapq.heapify(queue)
        while queue:
            _, _, kind, bud = heapq.heappop(queue)
            for child in self.grow(kind, bud):
                heapq.heappush(queue, (-child.radius, next(self.order), kind, child))

    def grow(self, kind: int, bud: _Bud) -> list[_Bud]:
        """One branch, up to its branch point or its end. Returns the buds of its daughters."""
        tree = self.trees[kind]
        number = len(tree)
        own = (number, bud.parent, bud.grandparent)
        tree.append(Branch(points_mm=np.zeros((0, 2)), radius_mm=np.zeros(0), parent=bud.parent, children=()))
        if bud.parent >= 0:
            tree[bud.parent] = replace(tree[bud.parent], children=(*tree[bud.parent].children, number))
        length = bud.length or self.length_mm(bud)
        x, y, heading, bend = bud.x, bud.y, bud.heading, 0.0
        radius, points, radii, walked, free = bud.radius, [(x, y)], [bud.radius], 0.0, True
        wiggle = self.tortuosity * (1.5 + 0.02 / radius)
        while free and (walked < length or (walked < 3 * length and self.crowded(kind, x, y, heading, own))):
            bend = bend * math.exp(-STEP_MM / 0.22) + wiggle * math.sqrt(STEP_MM) * self.normal()
            heading += bend * STEP_MM + self.steer(kind, x, y, heading, bud, own)
            nx, ny = x + STEP_MM * math.cos(heading), y + STEP_MM * math.sin(heading)
            early = walked < 0.15 + 1.5 * bud.radius
            free = (
                inside(nx, ny)
                and math.hypot(nx, ny) > FAZ_MM
                and (early or bud.forks is not None or not self.ground.taken(kind, *_ahead(nx, ny, heading, 0.06), own))
            )
            if free:
                x, y = nx, ny
                walked += STEP_MM
                # What unseen precapillaries take away on the way; nowhere do they lie as close as around the fovea.
                radius *= 1 - (0.6 if math.hypot(x, y) < 0.9 else 0.025) * STEP_MM
                points.append((x, y))
                radii.append(radius)
        for px, py in points:
            self.ground.take(kind, px, py, number)
        tree[number] = Branch(points_mm=np.array(points), radius_mm=np.array(radii), parent=bud.parent, children=())
        return self.fork(kind, bud, number, x, y, heading, radius) if free else []

    def crowded(self, kind: int, x: float, y: float, heading: float, own: tuple[int, ...]) -> bool:
        """No room for a daughter on either side: the branch point waits."""
        return all(
            any(self.ground.taken(kind, *_ahead(x, y, heading + side * 1.1, look), own) for look in (0.15, 0.27, 0.39, 0.5))
            for side in (1, -1)
        )

    def length_mm(self, bud: _Bud) -> float:
        mean = (0.40 + 6.0 * bud.radius) * (1.0 if bud.path_mm is not None else 1.3)
        return max(0.12, mean * (1 + 0.45 * self.normal()))

    def steer(self, kind: int, x: float, y: float, heading: float, bud: _Bud, own: tuple[int, ...]) -> float:
        """Change of heading at one step: towards the goal, away from vessels of the same kind."""
        if bud.forks is not None:
            return 0.0
        goal, pull = self.goal(bud, x, y, heading)
        turn = pull * STEP_MM * math.sin(goal - heading)
        cos, sin = math.cos(heading), math.sin(heading)
        left = cos * LOOK_COS - sin * LOOK_SIN, sin * LOOK_COS + cos * LOOK_SIN
        right = cos * LOOK_COS + sin * LOOK_SIN, sin * LOOK_COS - cos * LOOK_SIN
        for other, look, push, mine in ((kind, 0.22, 0.16, own), (1 - kind, 0.12, 0.05, ())):
            turn -= push * self.ground.taken(other, x + look * left[0], y + look * left[1], mine)
            turn += push * self.ground.taken(other, x + look * right[0], y + look * right[1], mine)
        return turn

    def goal(self, bud: _Bud, x: float, y: float, heading: float) -> tuple[float, float]:
        """Where it heads for, and how strongly: a trunk along its path; a branch to the fovea from nearby, else outwards."""
        if bud.path_mm is not None:
            nearest = int(np.argmin(np.hypot(bud.path_mm[:, 0] - x, bud.path_mm[:, 1] - y)))
            ahead = bud.path_mm[min(len(bud.path_mm) - 1, nearest + 4)]
            return math.atan2(ahead[1] - y, ahead[0] - x), 2.4
        to_fovea = math.atan2(-y, -x)
        if math.hypot(x, y) < 3.6 and math.cos(heading - to_fovea) > 0.15 and x < self.disc.x_mm - 1.0:
            return to_fovea, 0.9
        return math.atan2(y - 0.3 * self.disc.y_mm, x - 0.55 * self.disc.x_mm), 0.5

    def fork(self, kind: int, bud: _Bud, number: int, x: float, y: float, heading: float, radius: float) -> list[_Bud]:
        """Two daughters with r0³ = r1³ + r2³, or none where the vessel has become too thin."""
        begin = {"x": x, "y": y, "parent": number, "grandparent": bud.parent}
        if bud.forks is not None:
            scale = radius / _joined_radius(bud.forks)
            return [replace(fork, **begin, radius=fork.radius * scale) for fork in bud.forks]
        trunk = bud.path_mm is not None
        share = self.uniform(0.05, 0.17) if trunk and self.uniform(0, 1) < 0.72 else self.uniform(0.2, 0.5)
        minor, major = radius * share ** (1 / 3), radius * (1 - share) ** (1 / 3)
        if minor < THINNEST_MM:
            return []
        turn_major, turn_minor = murray_angles(radius, major, minor)
        side = self.emptier_side(kind, x, y, heading, number, -bud.side)
        ease = self.uniform(0.65, 1.0)
        return [
            _Bud(**begin, heading=heading - side * turn_major * ease, radius=major, path_mm=bud.path_mm, side=side),
            _Bud(**begin, heading=heading + side * turn_minor * ease, radius=minor, side=side),
        ]

    def emptier_side(self, kind: int, x: float, y: float, heading: float, number: int, usual: int) -> int:
        """+1 (left) or -1: where fewer vessels of the kind lie; `usual` decides a tie."""
        score = 0
        for look, angle in itertools.product((0.2, 0.4, 0.6, 0.8), (0.8, 1.3)):
            score += self.ground.taken(kind, *_ahead(x, y, heading - angle, look), (number,))
            score -= self.ground.taken(kind, *_ahead(x, y, heading + angle, look), (number,))
        if not score:
            return usual
        return 1 if score > 0 else -1


def _ahead(x: float, y: float, heading: float, distance: float) -> tuple[float, float]:
    return x + distance * math.cos(heading), y + distance * math.sin(heading)


def _joined_radius(buds: Sequence[_Bud]) -> float:
    """Of the vessel that divides into these (Murray): r0³ = r1³ + r2³."""
    return sum(bud.radius**3 for bud in buds) ** (1 / 3)


def _root(grower: _Grower, disc: Disc, trunks: list[tuple[float, float]], nasal_shift_mm: float) -> _Bud:
    """The central vessel: up and down at the disc, then temporal and nasal. `trunks`: (start angle °, radius mm) of
    superior temporal, superior nasal, inferior temporal, inferior nasal."""
    x, y = disc.x_mm + nasal_shift_mm + 0.1 * grower.normal(), disc.y_mm + grower.uniform(-0.25, 0.25)
    halves = []
    for up, (temporal, nasal) in ((1, trunks[:2]), (-1, trunks[2:])):
        ends = tuple(
            _Bud(heading=math.radians(0.5 * angle + 45.0 * up), radius=radius, path_mm=bundle_path_mm(angle, disc), side=side)
            for (angle, radius), side in ((temporal, -up), (nasal, up))
        )
        heading, length = up * math.radians(90 + 22 * grower.normal()), disc.half_height_mm * grower.uniform(0.2, 0.65)
        halves.append(_Bud(heading=heading, radius=_joined_radius(ends), forks=ends, length=length))
    heading = math.radians(90 * grower.uniform(-1, 1))
    return _Bud(x=x, y=y, heading=heading, radius=_joined_radius(halves), forks=tuple(halves), length=0.06)


def grow_trees(rng: np.random.Generator, disc: Disc, tortuosity: float = 1.0, calibre: float = 1.0) -> dict[str, list[Branch]]:
    """Both trees of one eye.

    Args:
        rng: a fresh generator; the trees are a function of its seed.
        disc: the optic nerve head.
        tortuosity: 1 is usual, 0 nearly straight. calibre: factor on all radii.

    Returns: 'artery' and 'vein', each a list of branches, parents first; at every branch point r0³ = r1³ + r2³.
    """
    grower = _Grower(rng, disc, tortuosity)
    roots = []
    shared = [5 * grower.normal(), 9 * grower.normal(), 5 * grower.normal(), 9 * grower.normal()]
    for kind, (temporal_mm, nasal_mm, apart, nasal_shift_mm) in enumerate(((0.053, 0.038, 1, 0.12), (0.069, 0.047, -1, 0.18))):
        trunks = []
        for i, degrees in enumerate((122.0, 52.0, -124.0, -50.0)):
            outward = 1 if degrees > 0 else -1
            angle = degrees + shared[i] + outward * apart * (grower.uniform(3, 7) if i % 2 == 0 else grower.uniform(6, 12))
            trunks.append((angle, calibre * (nasal_mm if i % 2 else temporal_mm) * (1 + 0.07 * grower.normal())))
        roots.append((kind, _root(grower, disc, trunks, nasal_shift_mm)))
    grower.grow_all(roots)
    return {"artery": grower.trees[0], "vein": grower.trees[1]}
