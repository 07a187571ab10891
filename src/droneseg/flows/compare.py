"""Two bundles on the same photographs."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from droneseg.core.errors import DronesegError
from droneseg.core.settings import Settings
from droneseg.evaluation.comparison import write_comparison
from droneseg.evaluation.evaluate import Evaluation, evaluate_folder
from droneseg.flows.samples import choose_pairs
from droneseg.inference.batch import predict_files
from droneseg.inference.segmenter import load_segmenter


@dataclass(frozen=True)
class Comparison:
    """Two models compared.

    Attributes:
        found: What is in report.json.
        report: Folder of the report.
    """

    found: dict[str, Any]
    report: Path


def compare_models(
    first: Path,
    second: Path,
    data: Path,
    out: Path,
    *,
    settings: Settings,
    split_file: Path | None = None,
    part: str = "val",
    replace: bool = False,
    progress: Callable[[str, int, int], None],
) -> Comparison:
    """Predict the same photographs with two bundles and write the report of their difference.

    Args:
        first: Bundle of the model that is there.
        second: Bundle of the one that may replace it.
        data: Dataset folder.
        out: Folder of the report.
        settings: Of the environment.
        split_file: Take only one part of this split.
        part: Which one.
        replace: Whether an older report may be replaced.
        progress: Called with a model's name, done and total.

    Raises:
        DatasetError: If the data has problems.
        BundleError: If a bundle does not verify.
        DronesegError: If the two are one model, or a photograph cannot be predicted.
    """
    segmenters = [load_segmenter(settings, model=folder) for folder in (first, second)]
    if segmenters[0].model_id == segmenters[1].model_id:
        raise DronesegError(f"{first} and {second} are the same model, {segmenters[0].model_id}: nothing to compare.")
    pairs = choose_pairs(data, split_file, part)
    names = _names(first, second)
    evaluations: list[Evaluation] = []
    with TemporaryDirectory() as temporary:
        for name, segmenter in zip(names, segmenters, strict=True):
            masks = Path(temporary, name)
            results = predict_files(segmenter, [pair.image for pair in pairs], masks, max_pixels=settings.max_pixels)
            for done, result in enumerate(results, start=1):
                if result.error:
                    raise DronesegError(f"{result.source}: {result.error}")
                progress(name, done, len(pairs))
            evaluations.append(evaluate_folder(masks, pairs[0].mask.parent, max_pixels=settings.max_pixels))
    made = [
        f"{letter}: {name}, model {each.model_id}, {each.profile}"
        for letter, name, each in zip("AB", names, segmenters, strict=True)
    ]
    on = f"{pairs[0].mask.parents[1]}" + (f", part {part} of {split_file.name}" if split_file else "")
    report = write_comparison(evaluations[0], evaluations[1], names, out, about=[*made, f"on: {on}"], replace=replace)
    return Comparison(report, out)


def _names(first: Path, second: Path) -> tuple[str, str]:
    if first.name != second.name:
        return first.name, second.name
    return f"{first.name}-A", f"{second.name}-B"
