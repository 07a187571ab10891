"""Scene-disjoint splits and folds: graph cuts over matched images."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import networkx as nx
import numpy as np
from numpy.typing import NDArray

from droneseg.core.errors import SplitError
from droneseg.data.image_matching import MIN_INLIERS, Match
from droneseg.data.splits import Fold, Split

_TRIES = 300
# Weights in the cost of a cut, in units of one dropped image: for class shares that differ by 100 %, for a class that
# is (nearly) missing from a part, and for each image above or below the requested size.
_SHARE_WEIGHT = 12.0
_SHORTAGE_WEIGHT = 30.0
_MIN_RELATIVE_SHARE = 0.5  # a class is short in a part if its share there is below this fraction of its overall share
_SIZE_WEIGHT = 0.5
_EMPTY_COST = 1000.0

# Folds are searched by simulated annealing over groups of images: those connected by matches with this many inliers.
_GROUP_INLIERS = tuple(round(factor * MIN_INLIERS) for factor in (1, 1.5, 2, 3, 5))
_FOLD_TRIES = 3
_STEPS_PER_GROUP = 60
_MAX_STEPS = 4000
_TEMPERATURES = (8.0, 0.3)
_REFINING_TEMPERATURES = (1.0, 0.1)


@dataclass(frozen=True)
class SceneSplit:
    """A split and the places in its parts.

    Attributes:
        split: The split.
        crossing: Number of matches between parts, recounted from all matches; 0 for a split by scene.
        groups: Number of places (connected images) in each part.
        class_shares: Share of the pixels by part and class name.
    """

    split: Split
    crossing: int
    groups: dict[str, int]
    class_shares: dict[str, dict[str, float]]


@dataclass(frozen=True)
class SceneFolds:
    """Folds whose training and validation parts share no place.

    Attributes:
        folds: The folds; every image is in the validation part of one of them.
        crossing: Number of matches between train and val of a fold, recounted from all matches; always 0.
        groups: Number of places (connected images) in train and val of each fold.
        class_shares: Share of the pixels by part and class name, for each fold.
    """

    folds: tuple[Fold, ...]
    crossing: int
    groups: tuple[dict[str, int], ...]
    class_shares: tuple[dict[str, dict[str, float]], ...]

    @property
    def never_validated(self) -> tuple[str, ...]:
        """Images in the validation part of no fold."""
        validated = {stem for fold in self.folds for stem in fold.val}
        return tuple(sorted({stem for fold in self.folds for stem in (*fold.train, *fold.dropped)} - validated))


def split_by_scene(
    matches: Iterable[Match],
    class_pixels: Mapping[str, NDArray[np.int64]],
    names: Sequence[str],
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
        names: Names of the C classes.
        val_share: Requested share of all images for val.
        test_share: Requested share of all images for test.
        seed: Seed of the starting points.

    Raises:
        SplitError: If no cut has all classes in every part.
    """
    matches = list(matches)
    graph = _graph(class_pixels, matches)
    rng = np.random.default_rng(seed)
    remaining, dropped = graph, set[str]()
    parts: dict[str, set[str]] = {}
    for name, share in (("test", test_share), ("val", val_share)):
        if share > 0:
            size = max(1, round(share * len(class_pixels)))
            parts[name], cut = _best_cut(remaining, class_pixels, names, size, rng, name)
            dropped |= cut
            remaining = remaining.subgraph(set(remaining) - parts[name] - cut)
    parts["train"] = set(remaining)
    train, val, test = (tuple(sorted(parts.get(name, ()))) for name in ("train", "val", "test"))
    split = Split(train, val, test, tuple(sorted(dropped)))
    scenes = describe_split(matches, class_pixels, names, split)
    if scenes.crossing:
        raise SplitError(f"{scenes.crossing} matches connect two parts of the split. This is a bug; please report it.")
    return scenes


def describe_split(
    matches: Iterable[Match], class_pixels: Mapping[str, NDArray[np.int64]], names: Sequence[str], split: Split
) -> SceneSplit:
    """Count the matches between the parts of a split, and the places and class shares of each part that has images.

    Args:
        matches: Matches between images.
        class_pixels: Pixels by class id, shape (C,), of every image by stem.
        names: Names of the C classes.
        split: The split.
    """
    graph = _graph(class_pixels, matches)
    parts = {name: split.parts[name] for name in ("test", "val", "train") if split.parts[name]}
    return SceneSplit(
        split,
        count_crossing(matches, split),
        {name: _count_places(graph, part) for name, part in parts.items()},
        {name: _named(_shares(part, class_pixels), names) for name, part in parts.items()},
    )


def _graph(stems: Iterable[str], matches: Iterable[Match]) -> nx.Graph:
    graph = nx.Graph()
    graph.add_nodes_from(sorted(stems))
    graph.add_edges_from((match.first, match.second) for match in matches)
    return graph


def _count_places(graph: nx.Graph, stems: Iterable[str]) -> int:
    return int(nx.number_connected_components(graph.subgraph(stems)))


def count_crossing(matches: Iterable[Match], split: Split) -> int:
    """Return the number of matches between two parts of a split."""
    return _count_crossing(matches, {"train": split.train, "val": split.val, "test": split.test})


def _count_crossing(matches: Iterable[Match], parts: Mapping[str, Iterable[str]]) -> int:
    part_of = {stem: name for name, part in parts.items() for stem in part}
    return sum(
        match.first in part_of and match.second in part_of and part_of[match.first] != part_of[match.second]
        for match in matches
    )


def fold_by_scene(
    matches: Iterable[Match],
    class_pixels: Mapping[str, NDArray[np.int64]],
    names: Sequence[str],
    *,
    count: int,
    seed: int,
) -> SceneFolds:
    """Split images into folds so that no match connects train and val of a fold.

    The images are partitioned into the validation parts. Each fold drops the images outside its validation part that
    match an image in it, so that every image is validated once. Simulated annealing searches for the partition with the
    lowest cost: few dropped images, class shares close to those of all images, and equal sizes. Images that match well
    move together, because moves of single images do not get a whole place into another part.

    Args:
        matches: Matches between images; those of other images are ignored.
        class_pixels: Pixels by class id, shape (C,), of every image by stem.
        names: Names of the C classes.
        count: Number of folds.
        seed: Seed of the search.

    Raises:
        SplitError: If a fold has no image for train or val.
    """
    matches = [match for match in matches if match.first in class_pixels and match.second in class_pixels]
    stems = sorted(class_pixels)
    if not 2 <= count <= len(stems):
        raise SplitError(f"{len(stems)} images cannot be split into {count} folds. Choose 2 to {len(stems)} folds.")
    labels = _FoldSearch(stems, matches, class_pixels, count).run(np.random.default_rng(seed))
    graph = _graph(stems, matches)
    folds = tuple(_fold(graph, set(np.array(stems)[labels == number].tolist())) for number in range(count))
    if short := [str(number) for number, fold in enumerate(folds, start=1) if not fold.train or not fold.val]:
        raise SplitError(
            f"The images show too few separate places for {count} folds: nothing is left for train or val of fold "
            f"{', '.join(short)}. Choose fewer folds, or add images of other places."
        )
    parts = [{"train": fold.train, "val": fold.val} for fold in folds]
    crossing = sum(_count_crossing(matches, fold) for fold in parts)
    if crossing:
        raise SplitError(f"{crossing} matches connect train and val of a fold. This is a bug; please report it.")
    return SceneFolds(
        folds,
        crossing,
        tuple({name: _count_places(graph, part) for name, part in fold.items()} for fold in parts),
        tuple({name: _named(_shares(part, class_pixels), names) for name, part in fold.items()} for fold in parts),
    )


def _fold(graph: nx.Graph, val: set[str]) -> Fold:
    """Return the fold with a validation part; it drops all other images that match one in it."""
    dropped = {neighbour for stem in val for neighbour in graph.neighbors(stem)} - val
    return Fold(tuple(sorted(set(graph) - val - dropped)), tuple(sorted(val)), tuple(sorted(dropped)))


class _FoldSearch:
    """Search for the partition of N images into K validation parts with the lowest cost."""

    def __init__(
        self,
        stems: Sequence[str],
        matches: Sequence[Match],
        class_pixels: Mapping[str, NDArray[np.int64]],
        count: int,
    ) -> None:
        self._count, self._size = count, len(stems)
        number = {stem: index for index, stem in enumerate(stems)}
        self._edges = [(number[match.first], number[match.second], match.inliers) for match in matches]
        self._adjacency = np.zeros((self._size, self._size), np.int32)
        for first, second, _ in self._edges:
            self._adjacency[first, second] = self._adjacency[second, first] = 1
        self._pixels = np.array([class_pixels[stem] for stem in stems], np.float64)
        self._target = self._pixels.sum(axis=0) / self._pixels.sum()

    def run(self, rng: np.random.Generator) -> NDArray[np.int64]:
        """Return the number of the part of each image, shape (N,), dtype int64."""
        found = []
        # several numbers of inliers can give the same groups
        for groups in dict.fromkeys(map(self._groups, _GROUP_INLIERS)):
            for _ in range(_FOLD_TRIES):
                labels = np.empty(self._size, np.int64)
                for group in groups:
                    labels[list(group)] = rng.integers(self._count)
                found.append(self._anneal(groups, labels, _TEMPERATURES, rng))
        _, labels = min(found, key=lambda item: item[0])
        single = [(index,) for index in range(self._size)]
        return self._anneal(single, labels, _REFINING_TEMPERATURES, rng)[1]

    def _groups(self, inliers: int) -> tuple[tuple[int, ...], ...]:
        """Return the groups of images that are connected by matches with at least this number of inliers."""
        graph = nx.Graph()
        graph.add_nodes_from(range(self._size))
        graph.add_edges_from((first, second) for first, second, found in self._edges if found >= inliers)
        return tuple(tuple(sorted(component)) for component in nx.connected_components(graph))

    def _anneal(
        self,
        groups: Sequence[Sequence[int]],
        labels: NDArray[np.int64],
        temperatures: tuple[float, float],
        rng: np.random.Generator,
    ) -> tuple[float, NDArray[np.int64]]:
        """Move groups between parts, accepting a higher cost ever more rarely; return the best cost and labels."""
        state = _FoldState(self._adjacency, self._pixels, labels, self._count)
        # number of matches of each group with each image
        neighbours = [self._adjacency[list(group)].sum(axis=0) for group in groups]
        current = best = self._cost(state)
        best_labels = labels.copy()
        first, last = temperatures
        steps = min(_MAX_STEPS, _STEPS_PER_GROUP * len(groups))
        for step in range(steps):
            chosen = int(rng.integers(len(groups)))
            source = int(state.labels[groups[chosen][0]])
            target = int(source + rng.integers(1, self._count)) % self._count
            state.move(groups[chosen], neighbours[chosen], source, target)
            cost = self._cost(state)
            temperature = first * (last / first) ** (step / steps)
            if cost <= current or rng.random() < np.exp((current - cost) / temperature):
                current = cost
                if cost < best:
                    best, best_labels = cost, state.labels.copy()
            else:
                state.move(groups[chosen], neighbours[chosen], target, source)
        return best, best_labels

    def _cost(self, state: "_FoldState") -> float:
        sizes = state.sizes
        totals = state.pixels.sum(axis=1)
        # the shares of a part without pixels are 0
        shares = state.pixels / np.maximum(totals, 1)[:, None]
        present = self._target > 0
        shortage = np.maximum(0, 1 - shares[:, present] / self._target[present] / _MIN_RELATIVE_SHARE).sum()
        cost = state.dropped + _SIZE_WEIGHT * np.abs(sizes - self._size / self._count).sum()
        cost += _SHARE_WEIGHT * np.abs(shares - self._target).sum() + _SHORTAGE_WEIGHT * shortage
        return float(cost + _EMPTY_COST * (sizes == 0).sum())


class _FoldState:
    """Partition of N images into K parts, updated move by move.

    Attributes:
        labels: Part of each image, shape (N,), dtype int64.
        matches: Number of matches of each image with each part, shape (N, K), dtype int32.
        pixels: Number of pixels of each part by class id, shape (K, C), dtype float64.
        sizes: Number of images in each part, shape (K,), dtype int64.
    """

    def __init__(
        self, adjacency: NDArray[np.int32], pixels: NDArray[np.float64], labels: NDArray[np.int64], count: int
    ) -> None:
        self.labels = labels.copy()
        member = np.eye(count, dtype=np.int32)[labels]
        self.matches = adjacency @ member
        self.pixels = member.T @ pixels
        self.sizes = member.sum(axis=0)
        self._image_pixels = pixels
        self._rows = np.arange(len(labels))

    @property
    def dropped(self) -> int:
        """Number of dropped images, summed over the folds: an image counts once for each other part that it matches."""
        return int(np.count_nonzero(self.matches) - np.count_nonzero(self.matches[self._rows, self.labels]))

    def move(self, group: Sequence[int], neighbours: NDArray[np.int32], source: int, target: int) -> None:
        """Move a group of images from one part to another.

        Args:
            group: Images of the group.
            neighbours: Number of matches of the group with each image, shape (N,).
            source: Part that contains the group.
            target: Part to move it to.
        """
        images = list(group)
        self.labels[images] = target
        self.matches[:, source] -= neighbours
        self.matches[:, target] += neighbours
        pixels = self._image_pixels[images].sum(axis=0)
        self.pixels[source] -= pixels
        self.pixels[target] += pixels
        self.sizes[source] -= len(images)
        self.sizes[target] += len(images)


def _best_cut(
    graph: nx.Graph,
    class_pixels: Mapping[str, NDArray[np.int64]],
    names: Sequence[str],
    size: int,
    rng: np.random.Generator,
    name: str,
) -> tuple[set[str], set[str]]:
    """Return the part of about `size` images with the lowest cost, and the images dropped for it."""
    target = _shares(class_pixels, class_pixels)
    best: tuple[float, set[str], set[str]] | None = None
    lacking = np.zeros(len(target), int)  # number of tries by missing class
    for _ in range(_TRIES):
        grown = _grow(graph, size, rng)
        cut = _cover(graph, grown)
        part, rest = grown - cut, set(graph) - grown - cut
        if not part or not rest:
            continue
        shares, rest_shares = _shares(part, class_pixels), _shares(rest, class_pixels)
        missing = (target > 0) & ((shares == 0) | (rest_shares == 0))
        if missing.any():
            lacking += missing
            continue
        shortage = _shortage(shares, target) + _shortage(rest_shares, target)
        cost = len(cut) + _SIZE_WEIGHT * abs(size - len(part)) + _SHORTAGE_WEIGHT * shortage
        cost += _SHARE_WEIGHT * np.abs(shares - target).sum()
        if best is None or cost < best[0]:
            best = (cost, part, cut)
    if best is None:
        scarce = ", ".join(names[i] for i in range(1, len(names)) if lacking[i] == lacking.max() > 0)
        reason = f"too few places show {scarce}" if scarce else "nearly all images show one place"
        raise SplitError(
            f"No split by scene leaves every class both in {name} and outside it: {reason}. Choose a larger share, "
            "add images of other places, or use --by random, whose metrics are too high."
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


def _named(shares: NDArray[np.float64], names: Sequence[str]) -> dict[str, float]:
    """Return the shares of all classes but the background by name."""
    return {name: float(share) for name, share in zip(names[1:], shares[1:], strict=True)}
