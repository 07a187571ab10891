"""Compare, promote, roll back."""

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from droneseg.core.errors import DronesegError, OtherClassesError, PromotionRefusedError, StoreError
from droneseg.core.files import atomic_directory, check_writable
from droneseg.core.settings import Settings
from droneseg.evaluation.comparison import (
    ComparisonReport,
    compare_evaluations,
    promotion_blockers,
    write_comparison,
)
from droneseg.evaluation.evaluate import Evaluation, evaluate_folder
from droneseg.evaluation.report import REPORT_MARKER
from droneseg.flows.export import choose_pairs
from droneseg.flows.transaction import (
    author,
    block_signals,
    champion_transaction,
    commit,
    now,
    recover_unfinished,
    require_unchanged,
)
from droneseg.inference.batch import predict_files
from droneseg.inference.segmenter import load_segmenter
from droneseg.model.bundle import MANIFEST_NAME, Bundle, dvc_file_of, read_bundle
from droneseg.model.dvc_remote import read_dvc_file, write_dvc_file
from droneseg.model.registry import (
    REGISTRY_NAME,
    RegisteredModel,
    RegistryEntry,
    champion_lineage,
    read_registry,
)
from droneseg.model.store import pull_model, require_tracked, run_dvc


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
) -> ComparisonReport:
    """Predict the same images with two bundles and write a report of the differences.

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
    report = compare_evaluations(evaluations[0], evaluations[1], names, about=[*made, f"on: {on}"])
    write_comparison(report, out, replace=replace)
    return report


def _names(first: Path, second: Path) -> tuple[str, str]:
    if first.name != second.name:
        return first.name, second.name
    return f"{first.name}-A", f"{second.name}-B"


_REGISTRY_FIGURES = ("images", "about", "figures", "differences")
"""Fields of a comparison that the registry keeps."""


@dataclass(frozen=True)
class EvaluationSpec:
    """On what a candidate and the champion are compared.

    Attributes:
        data: Dataset folder.
        split_file: Take only one part of this split.
        part: Which one.
        report: Folder of the report; an older report is replaced.
    """

    data: Path
    split_file: Path | None
    part: str
    report: Path


def promote_model(
    candidate: Path,
    spec: EvaluationSpec,
    *,
    settings: Settings,
    force: str | None = None,
    progress: Callable[[str, int, int], None],
) -> RegistryEntry:
    """Make a candidate the champion if it is better for sure and not less safe; committed to git.

    Args:
        candidate: Its bundle.
        spec: On what both are compared.
        settings: Of the environment; `model` is the champion's folder, `dvc_remote` where it comes from.
        force: A reason to promote it whatever the figures say.
        progress: Called with a model's name, done and total.

    Returns:
        What was written into the registry.

    Raises:
        PromotionRefusedError: If it may not; with all reasons.
        BundleError: If the candidate, or the champion, does not verify.
        StoreError: If the project is not in a state to be changed, or DVC or git fail; nothing is changed then.
    """
    bundle, champion = read_bundle(candidate), settings.model
    root = dvc_file_of(champion).parent
    recover_unfinished(champion)
    check_writable(spec.report, marker=REPORT_MARKER, replace=True)
    who = author(root)
    require_unchanged(root, champion)
    previous, report, reasons = _examine(bundle, spec, settings, progress)
    _require_allowed(candidate, reasons, spec, force)
    with block_signals(), champion_transaction(root, champion) as before:
        require_unchanged(root, champion)
        if previous and read_dvc_file(dvc_file_of(champion)) != previous.version:
            raise StoreError("Another model became the champion meanwhile. Promote it again, against that one.")
        if previous and champion.exists():
            # into DVC's cache, if it came without: a rollback needs no network then
            run_dvc(root, "commit", "--force", "--quiet", dvc_file_of(champion).name)
        with atomic_directory(champion, marker=MANIFEST_NAME, replace=True) as aside:
            for name in (MANIFEST_NAME, *bundle.manifest.files):
                shutil.copyfile(candidate / name, aside / name)
        if read_bundle(champion).model_id != bundle.model_id:
            raise StoreError(f"{candidate} was changed while it was compared. Promote it again.")
        run_dvc(root, "add", "--quiet", champion.parent.name)
        model = RegisteredModel(model_id=bundle.model_id, version=read_dvc_file(dvc_file_of(champion)))
        reason = force or "better with 95 % confidence, and not less safe"
        entry = RegistryEntry(
            when=now(), who=who, action="promote", model=model, previous=previous, reason=reason,
            forced=bool(reasons), figures=_registry_figures(report),
        )  # fmt: skip
        commit(root, entry, before)
    return entry


def roll_back(settings: Settings, reason: str) -> RegistryEntry:
    """Give the model before the champion its place back; committed to git.

    Args:
        settings: Of the environment; `model` is the champion's folder, `dvc_remote` where the older model comes from.
        reason: Why.

    Raises:
        StoreError: If there is none before it, or it cannot be fetched; nothing is changed then.
    """
    champion = settings.model
    pointer = dvc_file_of(champion)
    root = pointer.parent
    recover_unfinished(champion)
    who = author(root)
    require_unchanged(root, champion)
    line = champion_lineage(read_registry(root))
    if len(line) < 2:
        raise StoreError(
            f"{root / REGISTRY_NAME} knows no model before this one; take an older commit of {pointer.name}."
        )
    target, current = line[-2:]
    if read_dvc_file(pointer) != current.version:
        raise StoreError(
            f"{pointer} does not name the last model of {REGISTRY_NAME}, {current.model_id}: somebody changed it by "
            "hand. Take the version you want from git's log."
        )
    if champion.exists():
        require_tracked(champion)  # somebody's own model is not replaced
    with champion_transaction(root, champion) as before:
        if read_dvc_file(pointer) != current.version:
            raise StoreError("Another model became the champion meanwhile; look at `droneseg models list`.")
        write_dvc_file(pointer, target.version)
        pull_model(champion, settings.dvc_remote, replace=True)
        entry = RegistryEntry(when=now(), who=who, action="rollback", model=target, previous=current, reason=reason)
        commit(root, entry, before)
    return entry


def _examine(
    candidate: Bundle, spec: EvaluationSpec, settings: Settings, progress: Callable[[str, int, int], None]
) -> tuple[RegisteredModel | None, ComparisonReport | None, list[str]]:
    """Return the champion, its comparison with the candidate, and the reasons against the candidate."""
    champion = settings.model
    if not dvc_file_of(champion).is_file():
        if champion.exists():
            raise StoreError(
                f"{champion} is there, but {dvc_file_of(champion)} is not: move it elsewhere and promote it from there."
            )
        return None, None, ["there is no champion to compare it with"]
    older, comparable = _champion(champion, settings)
    if older == candidate.model_id:
        raise PromotionRefusedError(f"{candidate.folder} is the champion already: model {older}.")
    previous = RegisteredModel(model_id=older, version=read_dvc_file(dvc_file_of(champion)))
    if not comparable:
        return previous, None, ["the champion was made for another class table, so the two cannot be compared"]
    report = _compare(champion, candidate.folder, spec, settings, progress)
    return previous, report, promotion_blockers(report)


def _registry_figures(report: ComparisonReport | None) -> dict[str, Any]:
    content = report.model_dump(mode="json") if report else {}
    return {name: content[name] for name in _REGISTRY_FIGURES if name in content}


def _champion(champion: Path, settings: Settings) -> tuple[str, bool]:
    """Return the champion's id, fetched if it is not there, and whether it is for these classes."""
    try:
        if not champion.exists():
            return pull_model(champion, settings.dvc_remote).bundle.model_id, True
        require_tracked(champion)
        return read_bundle(champion).model_id, True
    except OtherClassesError as error:
        return error.model_id, False


def _compare(
    champion: Path, candidate: Path, spec: EvaluationSpec, settings: Settings, progress: Callable[[str, int, int], None]
) -> ComparisonReport:
    return compare_models(
        champion,
        candidate,
        spec.data,
        spec.report,
        settings=settings,
        split_file=spec.split_file,
        part=spec.part,
        replace=True,
        progress=progress,
    )


def _require_allowed(candidate: Path, reasons: list[str], spec: EvaluationSpec, force: str | None) -> None:
    if not reasons or force is not None:
        return
    lines = "".join(f"\n  - {reason}" for reason in reasons)
    where = f" The report: {spec.report / 'report.md'}." if spec.report.exists() else ""
    raise PromotionRefusedError(
        f"{candidate} does not become the champion:{lines}\n--force REASON does it nevertheless.{where}"
    )
