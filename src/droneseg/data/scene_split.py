"""Scene-disjoint split: graph cut over matched photographs."""

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
# What else counts beside a dropped photograph (1 each): class shares that differ by 100 %, a class that a part (nearly)
# lacks, and each photograph more or less than the wanted size.
_SHARE_WEIGHT = 12.0
_LACK_WEIGHT = 30.0
_LEAST_SHARE = 0.5  # of its share in all photographs: a class with less than that begins to be lacking
_SIZE_WEIGHT = 0.5


@dataclass(frozen=True)
class SceneSplit:
    """A split without a match between its parts.

    Attributes:
        split: The parts.
        crossing: Matches between parts, counted again from all matches; always 0.
        groups: Places (connected photographs) in each part.
        class_shares: Share of the pixels by class name, of each part.
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
    """Part photographs so that no match crosses from one part to another.

    One part after the other is grown from many starting points along the matches; which photographs must then be
    dropped is the smallest set that touches every crossing match (a minimum vertex cover, exact for two sides by
    Koenig's theorem). The cheapest growth counts: few dropped, class shares like those of all, the wanted size.

    Args:
        matches: Verified matches.
        class_pixels: Pixels by class, shape (C,), of every photograph by stem.
        val_share: Wanted share of all photographs for val.
        test_share: Wanted share of all photographs for test.
        seed: Equal seeds give equal splits.

    Raises:
        SplitError: If no cut has all classes in every part.
    """
    matches = list(matches)
    graph = nx.Graph()
    graph.add_nodes_from(sorted(class_pixels))
    graph.add_edges_from((match.first, match.second) for match in matches)
    rng = np.random.default_rng(seed)
    left, dropped = graph, set[str]()
    parts: dict[str, set[str]] = {}
    for name, share in (("test", test_share), ("val", val_share)):
        if share > 0:
            size = max(1, round(share * len(class_pixels)))
            parts[name], gone = _best_cut(left, class_pixels, size, rng, name)
            dropped |= gone
            left = left.subgraph(set(left) - parts[name] - gone)
    parts["train"] = set(left)
    split = Split(**{name: tuple(sorted(part)) for name, part in (*parts.items(), ("dropped", dropped))})
    crossing = count_crossing(matches, split)
    if crossing:
        raise SplitError(f"{crossing} matches cross from one part to another: this is a bug, please report it.")
    return SceneSplit(
        split,
        crossing,
        {name: nx.number_connected_components(graph.subgraph(part)) for name, part in parts.items()},
        {name: _named(_shares(part, class_pixels)) for name, part in parts.items()},
    )


def count_crossing(matches: Iterable[Match], split: Split) -> int:
    """Return how many matches lie between two parts of a split."""
    part_of = {stem: name for name in ("train", "val", "test") for stem in getattr(split, name)}
    return sum(
        match.first in part_of and match.second in part_of and part_of[match.first] != part_of[match.second]
        for match in matches
    )


def _best_cut(
    graph: nx.Graph, class_pixels: Mapping[str, NDArray[np.int64]], size: int, rng: np.random.Generator, name: str
) -> tuple[set[str], set[str]]:
    """Return the part of about `size` photographs that costs least, and the photographs dropped for it."""
    wanted = _shares(class_pixels, class_pixels)
    present = wanted > 0
    best: tuple[float, set[str], set[str]] | None = None
    for _ in range(_TRIES):
        grown = _grow(graph, size, rng)
        gone = _cover(graph, grown)
        part, rest = grown - gone, set(graph) - grown - gone
        if not part or not rest:
            continue
        shares = _shares(part, class_pixels)
        if (present & ((shares == 0) | (_shares(rest, class_pixels) == 0))).any():
            continue
        lacking = sum(_lack(there[present] / wanted[present]) for there in (shares, _shares(rest, class_pixels)))
        cost = len(gone) + _SIZE_WEIGHT * abs(size - len(part)) + _LACK_WEIGHT * lacking
        cost += _SHARE_WEIGHT * np.abs(shares - wanted).sum()
        if best is None or cost < best[0]:
            best = (cost, part, gone)
    if best is None:
        raise SplitError(
            f"No cut leaves all classes both in {name} and outside it. Take a larger share, or more photographs."
        )
    return best[1], best[2]


def _lack(relative: NDArray[np.float64]) -> float:
    """Return how much of the classes is lacking, from their shares relative to those of all photographs."""
    return float(np.maximum(0, 1 - relative / _LEAST_SHARE).sum())


def _grow(graph: nx.Graph, size: int, rng: np.random.Generator) -> set[str]:
    """Grow a set of photographs along matches, next the one with most of its matches inside; ties by chance."""
    inside: set[str] = set()
    order = [str(stem) for stem in rng.permutation(sorted(graph))]
    reach: dict[str, int] = defaultdict(int)
    # a little more or less than wanted: some of it will be dropped
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
    """Return the fewest photographs that touch every match between `inside` and the rest."""
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
