"""Compare two models, promote a candidate to champion and roll back a promotion."""

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

from droneseg.core.errors import ConfigurationError, DronesegError, PromotionRefusedError, StoreError
from droneseg.core.files import atomic_directory, check_writable
from droneseg.core.prediction import Segmenter
from droneseg.core.settings import Settings
from droneseg.data.dataset import Pair
from droneseg.evaluation import comparison
from droneseg.evaluation.evaluate import Evaluation, evaluate_folder
from droneseg.evaluation.report import REPORT_MARKER
from droneseg.flows import transaction
from droneseg.flows.export import choose_pairs
from droneseg.inference.batch import DEFAULT_VIEW, ViewOptions, predict_files
from droneseg.inference.segmenter import load_segmenter
from droneseg.model import registry
from droneseg.model.bundle import MANIFEST_NAME, Bundle, dvc_file_of, read_bundle
from droneseg.model.dvc_remote import read_dvc_file, write_dvc_file
from droneseg.model.store import pull_model, require_tracked, run_dvc

ImageProgress = Callable[[str, int, int], None]
"""Progress callback with the name of a model, the number of predicted images and the total."""


@dataclass(frozen=True)
class EvaluationSpec:
    """Data and report folder for comparing a candidate with the champion.

    Attributes:
        data: Dataset folder.
        split_file: Split file that selects one part of the dataset; None selects all images.
        part: Name of the part.
        report: Folder of the report; an earlier report is replaced.
        view: How the images are presented to the models.
    """

    data: Path
    split_file: Path | None
    part: str
    report: Path
    view: ViewOptions = DEFAULT_VIEW


def compare_models(
    first: Path,
    second: Path,
    data: Path,
    out: Path,
    *,
    settings: Settings,
    split_file: Path | None = None,
    part: str = "val",
    view: ViewOptions = DEFAULT_VIEW,
    replace: bool = False,
    progress: ImageProgress,
) -> comparison.ComparisonReport:
    """Predict the same images with two bundles and write a report of the differences.

    Args:
        first: Bundle of the current model.
        second: Bundle of the model that may replace it.
        data: Dataset folder.
        out: Folder of the report.
        settings: Application settings.
        split_file: Split file that selects one part of the dataset; None selects all images.
        part: Name of the part.
        view: How the images are presented to the models.
        replace: Whether an earlier report may be replaced.
        progress: Progress callback, called after each image.

    Raises:
        ConfigurationError: If the models or the dataset have different classes.
        DatasetError: If the dataset has problems.
        BundleError: If the verification of a bundle fails.
        DronesegError: If both bundles contain the same model, or an image cannot be predicted.
    """
    segmenters = [load_segmenter(settings, model=folder) for folder in (first, second)]
    if segmenters[0].model_id == segmenters[1].model_id:
        raise DronesegError(
            f"{first} and {second} contain the same model, {segmenters[0].model_id}. Choose two different models."
        )
    if segmenters[0].classes != segmenters[1].classes:
        classes = " and ".join(", ".join(segmenter.classes.names) for segmenter in segmenters)
        raise ConfigurationError(
            f"{first} and {second} have different class tables, so they cannot be compared: {classes}. The names, "
            "colours and roles must be the same."
        )
    pairs = choose_pairs(data, split_file, part, classes=segmenters[0].classes)
    names = _model_names(first, second)
    evaluations = [
        _evaluate(segmenter, pairs, view=view, max_pixels=settings.max_pixels, progress=partial(progress, name))
        for name, segmenter in zip(names, segmenters, strict=True)
    ]
    models = [
        f"{letter}: {name}, model {segmenter.model_id}, {segmenter.profile}"
        for letter, name, segmenter in zip("AB", names, segmenters, strict=True)
    ]
    dataset = f"{pairs[0].mask.parents[1]}" + (f", part {part} of {split_file.name}" if split_file else "")
    about = [*models, f"on: {dataset}", *([f"options: {view}"] if str(view) else [])]
    report = comparison.compare_evaluations(evaluations[0], evaluations[1], names, about=about)
    comparison.write_comparison(report, out, replace=replace)
    return report


def _model_names(first: Path, second: Path) -> tuple[str, str]:
    """Return the folder names of two models, with suffixes if they are equal."""
    if first.name != second.name:
        return first.name, second.name
    return f"{first.name}-A", f"{second.name}-B"


def _evaluate(
    segmenter: Segmenter,
    pairs: Sequence[Pair],
    *,
    view: ViewOptions,
    max_pixels: int,
    progress: Callable[[int, int], None],
) -> Evaluation:
    """Predict the images of a dataset and compare the masks with the ground truth."""
    with TemporaryDirectory() as temporary:
        masks = Path(temporary, "masks")
        images = [pair.files for pair in pairs]
        results = predict_files(segmenter, images, masks, view=view, max_pixels=max_pixels)
        for done, result in enumerate(results, start=1):
            if result.error:
                raise DronesegError(f"{result.source}: {result.error}")
            progress(done, len(pairs))
        encoding = pairs[0].encoding
        return evaluate_folder(
            masks,
            pairs[0].mask.parent,
            segmenter.classes,
            truth_kind=encoding.kind,
            colours=encoding.colours,
            max_pixels=max_pixels,
        )


def promote_model(
    candidate: Path,
    spec: EvaluationSpec,
    *,
    settings: Settings,
    force: str | None = None,
    progress: ImageProgress,
) -> registry.RegistryEntry:
    """Make a candidate the champion if it is significantly better and not less safe, and commit the change to git.

    Args:
        candidate: Bundle of the candidate.
        spec: Data and report folder of the comparison with the champion.
        settings: Application settings; `model` is the champion's folder, `dvc_remote` the remote it is fetched from.
        force: Reason for promoting the candidate regardless of the comparison; None requires a better candidate.
        progress: Progress callback, called after each image.

    Returns:
        The new entry of the registry.

    Raises:
        PromotionRefusedError: If the candidate is not better, is less safe or cannot be compared; the message lists
            all reasons.
        BundleError: If the verification of the candidate or the champion fails.
        StoreError: If the project has uncommitted changes, or DVC or git fails. In these cases, nothing is changed.
    """
    bundle, champion = read_bundle(candidate), settings.model
    root = dvc_file_of(champion).parent
    transaction.recover_unfinished(champion)
    check_writable(spec.report, marker=REPORT_MARKER, replace=True)
    who = transaction.author(root)
    transaction.require_unchanged(root, champion)
    previous, report, reasons = _examine(bundle, spec, settings, progress)
    if reasons and force is None:
        raise PromotionRefusedError(_refusal(candidate, reasons, spec))
    with transaction.block_signals(), transaction.champion_transaction(root, champion) as before:
        transaction.require_unchanged(root, champion)
        model = _install(bundle, champion, previous)
        entry = registry.RegistryEntry(
            when=transaction.now(),
            who=who,
            action="promote",
            model=model,
            previous=previous,
            reason=force or _reason(report),
            forced=bool(reasons),
            figures=_recorded(report),
        )
        transaction.commit(root, entry, before)
    return entry


def _reason(report: comparison.ComparisonReport | None) -> str:
    """Return why a candidate is promoted without force."""
    if report and "unsafe_landing_rate" not in report.differences:
        return f"better with 95 % confidence. {report.landing_note}"
    return "better with 95 % confidence, and not less safe"


def _install(bundle: Bundle, champion: Path, previous: registry.RegisteredModel | None) -> registry.RegisteredModel:
    """Copy a candidate to the champion's folder and add it to DVC.

    Raises:
        StoreError: If the champion is no longer `previous`, or the candidate has changed since the comparison.
    """
    dvc_file = dvc_file_of(champion)
    root = dvc_file.parent
    if previous and read_dvc_file(dvc_file) != previous.version:
        raise StoreError(
            "Another model became the champion during the comparison. Run the command again to compare with it."
        )
    if previous and champion.exists():
        # adds the old champion to DVC's cache if it is missing there, so that a rollback needs no network
        run_dvc(root, "commit", "--force", "--quiet", dvc_file.name)
    with atomic_directory(champion, marker=MANIFEST_NAME, replace=True) as staging_dir:
        for name in (MANIFEST_NAME, *bundle.manifest.files):
            shutil.copyfile(bundle.folder / name, staging_dir / name)
    if read_bundle(champion).model_id != bundle.model_id:
        raise StoreError(f"{bundle.folder} was changed during the comparison. Run the command again.")
    run_dvc(root, "add", "--quiet", champion.parent.name)
    return registry.RegisteredModel(model_id=bundle.model_id, version=read_dvc_file(dvc_file))


def roll_back(settings: Settings, reason: str) -> registry.RegistryEntry:
    """Make the previous model the champion again, and commit the change to git.

    Args:
        settings: Application settings; `model` is the champion's folder, `dvc_remote` the remote of older models.
        reason: Reason for the registry.

    Returns:
        The new entry of the registry.

    Raises:
        StoreError: If there is no previous model, or it cannot be fetched. In these cases, nothing is changed.
    """
    champion = settings.model
    dvc_file = dvc_file_of(champion)
    root = dvc_file.parent
    transaction.recover_unfinished(champion)
    who = transaction.author(root)
    transaction.require_unchanged(root, champion)
    target, current = _last_two_champions(root, dvc_file)
    if champion.exists():
        require_tracked(champion)  # the folder may contain a model of the user, which must not be replaced
    with transaction.champion_transaction(root, champion) as before:
        if read_dvc_file(dvc_file) != current.version:
            raise StoreError("Another model became the champion in the meantime. See `droneseg models list`.")
        write_dvc_file(dvc_file, target.version)
        pull_model(champion, settings.dvc_remote, replace=True)
        entry = registry.RegistryEntry(
            when=transaction.now(), who=who, action="rollback", model=target, previous=current, reason=reason
        )
        transaction.commit(root, entry, before)
    return entry


def _last_two_champions(root: Path, dvc_file: Path) -> tuple[registry.RegisteredModel, registry.RegisteredModel]:
    """Return the previous and the current champion.

    Raises:
        StoreError: If the registry has no previous champion, or does not match the `.dvc` file.
    """
    lineage = registry.champion_lineage(registry.read_registry(root))
    if len(lineage) < 2:
        raise StoreError(
            f"{root / registry.REGISTRY_NAME} has no model before the current one. To go back further, check out "
            f"an older commit of {dvc_file.name}."
        )
    previous, current = lineage[-2:]
    if read_dvc_file(dvc_file) != current.version:
        raise StoreError(
            f"{dvc_file} does not match the last entry of {registry.REGISTRY_NAME}, model {current.model_id}. "
            "Check out matching versions of both files with git."
        )
    return previous, current


def _examine(
    candidate: Bundle, spec: EvaluationSpec, settings: Settings, progress: ImageProgress
) -> tuple[registry.RegisteredModel | None, comparison.ComparisonReport | None, list[str]]:
    """Return the champion, its comparison with the candidate, and the reasons against the candidate."""
    champion = settings.model
    dvc_file = dvc_file_of(champion)
    if not dvc_file.is_file():
        if champion.exists():
            raise StoreError(
                f"{champion} exists, but {dvc_file} does not. "
                "Move the model to another folder and promote it from there."
            )
        return None, None, ["there is no champion to compare it with"]
    current = _champion(champion, settings)
    if current.model_id == candidate.model_id:
        raise PromotionRefusedError(f"{candidate.folder} is already the champion: model {current.model_id}.")
    previous = registry.RegisteredModel(model_id=current.model_id, version=read_dvc_file(dvc_file))
    if current.manifest.class_table != candidate.manifest.class_table:
        return previous, None, ["the champion has other classes, so the two cannot be compared"]
    report = compare_models(
        champion,
        candidate.folder,
        spec.data,
        spec.report,
        settings=settings,
        split_file=spec.split_file,
        part=spec.part,
        view=spec.view,
        replace=True,
        progress=progress,
    )
    blockers = comparison.promotion_blockers(report)
    if blockers and (changed := _changed_blocks(current, candidate)):
        blockers.append(f"it has the network of the champion; only the manifest differs: {', '.join(changed)}")
    return previous, report, blockers


def _changed_blocks(champion: Bundle, candidate: Bundle) -> list[str]:
    """Return the names of the manifest's entries that differ; none if the networks of the default profiles differ."""
    before, after = (
        bundle.manifest.files[bundle.manifest.profiles[bundle.manifest.default_profile].network]
        for bundle in (champion, candidate)
    )
    if before != after:
        return []
    old, new = champion.manifest, candidate.manifest
    return [name for name in type(old).model_fields if name != "files" and getattr(old, name) != getattr(new, name)]


def _champion(champion: Path, settings: Settings) -> Bundle:
    """Return the champion; fetch it if it is missing."""
    if not champion.exists():
        return pull_model(champion, settings.dvc_remote).bundle
    require_tracked(champion)
    return read_bundle(champion)


def _recorded(report: comparison.ComparisonReport | None) -> registry.RecordedComparison | None:
    """Return the part of a comparison that the registry stores."""
    if report is None:
        return None
    return registry.RecordedComparison.model_validate(
        report.model_dump(include=set(registry.RecordedComparison.model_fields))
    )


def _refusal(candidate: Path, reasons: list[str], spec: EvaluationSpec) -> str:
    lines = "".join(f"\n  - {reason}" for reason in reasons)
    report = f" See the report: {spec.report / 'report.md'}." if spec.report.exists() else ""
    return f"{candidate} was not promoted:{lines}\nUse --force REASON to promote it anyway.{report}"
