"""Scene-disjoint split: graph cut over matched images."""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import networkx as nx
import numpy as np
from numpy.typing import NDArray

from droneseg.core.classes import FOREGROUND
from droneseg.core.errors import SplitError
from droneseg.data.image_matching import Match
from droneseg.data.splits import Split

_TRIES = 300
# Weights in the cost of a cut, in units of one dropped image: for class shares that differ by 100 %, for a class that
# is (nearly) missing from a part, and for each image above or below the requested size.
_SHARE_WEIGHT = 12.0
_SHORTAGE_WEIGHT = 30.0
_MIN_RELATIVE_SHARE = 0.5  # a class is short in a part if its share there is below this fraction of its overall share
_SIZE_WEIGHT = 0.5


@dataclass(frozen=True)
class SceneSplit:
    """A split whose parts share no place.

    Attributes:
        split: The split.
        crossing: Number of matches between parts, recounted from all matches; always 0.
        groups: Number of places (connected images) in each part.
        class_shares: Share of the pixels by part and class name.
    """

    split: Split
    crossing: int
    groups: dict[str, int]
    class_shares: dict[str, dict[str, float]]


def split_by_scene(
    matches: Iterable[Match],
    class_pixels: Mapping[str, NDArray[np.int64]],
    *,
    val_share: float,
    test_share: float,
    seed: int,
) -> SceneSplit:
    """Split images so that no match connects two parts.

    The test part and then the val part are grown along the matches from many starting points. The images dropped for a
    part are the smallest set that touches every match across its border (a minimum vertex cover, exact in bipartite
    graphs by Koenig's theorem). The part with the lowest cost is chosen: few dropped images, class shares close to
    those of all images, and a size close to the requested one.

    Args:
        matches: Matches between images.
        class_pixels: Pixels by class id, shape (C,), of every image by stem.
        val_share: Requested share of all images for val.
        test_share: Requested share of all images for test.
        seed: Seed of the starting points.

    Raises:
        SplitError: If no cut has all classes in every part.
    """
    matches = list(matches)
    graph = nx.Graph()
    graph.add_nodes_from(sorted(class_pixels))
    graph.add_edges_from((match.first, match.second) for match in matches)
    rng = np.random.default_rng(seed)
    remaining, dropped = graph, set[str]()
    parts: dict[str, set[str]] = {}
    for name, share in (("test", test_share), ("val", val_share)):
        if share > 0:
            size = max(1, round(share * len(class_pixels)))
            parts[name], cut = _best_cut(remaining, class_pixels, size, rng, name)
            dropped |= cut
            remaining = remaining.subgraph(set(remaining) - parts[name] - cut)
    parts["train"] = set(remaining)
    split = Split(**{name: tuple(sorted(part)) for name, part in (*parts.items(), ("dropped", dropped))})
    crossing = count_crossing(matches, split)
    if crossing:
        raise SplitError(f"{crossing} matches connect two parts of the split. This is a bug; please report it.")
    return SceneSplit(
        split,
        crossing,
        {name: nx.number_connected_components(graph.subgraph(part)) for name, part in parts.items()},
        {name: _named(_shares(part, class_pixels)) for name, part in parts.items()},
    )


def count_crossing(matches: Iterable[Match], split: Split) -> int:
    """Return the number of matches between two parts of a split."""
    part_of = {stem: name for name in ("train", "val", "test") for stem in getattr(split, name)}
    return sum(
        match.first in part_of and match.second in part_of and part_of[match.first] != part_of[match.second]
        for match in matches
    )


def _best_cut(
    graph: nx.Graph, class_pixels: Mapping[str, NDArray[np.int64]], size: int, rng: np.random.Generator, name: str
) -> tuple[set[str], set[str]]:
    """Return the part of about `size` images with the lowest cost, and the images dropped for it."""
    target = _shares(class_pixels, class_pixels)
    best: tuple[float, set[str], set[str]] | None = None
    for _ in range(_TRIES):
        grown = _grow(graph, size, rng)
        cut = _cover(graph, grown)
        part, rest = grown - cut, set(graph) - grown - cut
        if not part or not rest:
            continue
        shares, rest_shares = _shares(part, class_pixels), _shares(rest, class_pixels)
        if ((target > 0) & ((shares == 0) | (rest_shares == 0))).any():
            continue
        shortage = _shortage(shares, target) + _shortage(rest_shares, target)
        cost = len(cut) + _SIZE_WEIGHT * abs(size - len(part)) + _SHORTAGE_WEIGHT * shortage
        cost += _SHARE_WEIGHT * np.abs(shares - target).sum()
        if best is None or cost < best[0]:
            best = (cost, part, cut)
    if best is None:
        raise SplitError(
            f"No split by scene leaves every class both in {name} and outside it. Choose a larger share, or add images."
        )
    return best[1], best[2]


def _shortage(shares: NDArray[np.float64], target: NDArray[np.float64]) -> float:
    """Return how far the class shares of a part are below the accepted minimum, relative and summed over classes."""
    present = target > 0
    return float(np.maximum(0, 1 - shares[present] / target[present] / _MIN_RELATIVE_SHARE).sum())


def _grow(graph: nx.Graph, size: int, rng: np.random.Generator) -> set[str]:
    """Grow a set of images along matches, adding the image with most of its matches inside; ties are random."""
    inside: set[str] = set()
    order = [str(stem) for stem in rng.permutation(sorted(graph))]
    reach: dict[str, int] = defaultdict(int)
    # the size varies because some of the images are dropped afterwards
    target = size * rng.uniform(0.9, 1.35)
    while len(inside) < min(target, len(graph) - 1):
        if reach:
            nearest = max(reach, key=lambda stem: (reach[stem] / graph.degree(stem), reach[stem]))
        else:
            nearest = next(stem for stem in order if stem not in inside)
        reach.pop(nearest, None)
        inside.add(nearest)
        for neighbour in graph.neighbors(nearest):
            if neighbour not in inside:
                reach[neighbour] += 1
    return inside


def _cover(graph: nx.Graph, inside: set[str]) -> set[str]:
    """Return the smallest set of images that touches every match between `inside` and the rest."""
    crossing = [(a, b) if a in inside else (b, a) for a, b in graph.edges if (a in inside) != (b in inside)]
    between = nx.Graph(crossing)
    tops = {a for a, _ in crossing}
    if not crossing:
        return set()
    pairs = nx.bipartite.hopcroft_karp_matching(between, top_nodes=tops)
    return set(nx.bipartite.to_vertex_cover(between, pairs, top_nodes=tops))


def _shares(stems: Iterable[str], class_pixels: Mapping[str, NDArray[np.int64]]) -> NDArray[np.float64]:
    counts = np.sum([class_pixels[stem] for stem in stems], axis=0)
    return np.asarray(counts / counts.sum(), dtype=np.float64)


def _named(shares: NDArray[np.float64]) -> dict[str, float]:
    return {entry.name: float(shares[entry.id]) for entry in FOREGROUND}
