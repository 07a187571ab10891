"""The `droneseg models` commands."""

from __future__ import annotations

import shlex
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from droneseg.cli import console
from droneseg.cli.console import Json, Part, SplitFile, ValPart
from droneseg.core.classes import Role

if TYPE_CHECKING:
    from rich.table import Table

    from droneseg.core.classes import ClassTable
    from droneseg.core.settings import Settings
    from droneseg.evaluation.comparison import ComparisonReport
    from droneseg.flows.upgrade import CalibrationImages
    from droneseg.model.bundle import Bundle, Manifest
    from droneseg.model.checkpoint_store import CheckpointPull
    from droneseg.model.registry import ModelVersion, RegistryEntry

Remote = Annotated[
    str | None, typer.Option("--remote", help="DVC remote; default: $DRONESEG_DVC_REMOTE or the one in .dvc.")
]
ReportFolder = Annotated[Path, typer.Option("--report", help="Folder for the report.")]
EvaluationData = Annotated[
    Path, typer.Option("--data", help="Dataset folder; use images not seen in training.", show_default=False)
]

app = typer.Typer(help="Fetch, show, compare, promote, upgrade and blend models.", no_args_is_help=True)


@app.callback()
def models() -> None:
    """Fetch, show, compare, promote, upgrade and blend models."""
    console.exit_on_sigterm()


@app.command("list")
def list_models(
    remote: Annotated[
        str | None, typer.Option("--remote", help="Also show which models this DVC remote stores.")
    ] = None,
    json: Json = False,
) -> None:
    """List the champion and its predecessors."""
    from droneseg.model.registry import list_models

    versions = list_models(console.settings().model, remote)
    if json:
        console.show_json([_version_json(version) for version in versions])
        return
    rows = [
        [
            version.model_id or "not fetched",
            version.state + (", local" if version.is_local else ""),
            (version.since or "-")[:10],
            console.number(version.figures.get("miou")),
            console.percent(version.figures.get("unsafe_landing_rate")),
            *([] if version.in_remote is None else ["yes" if version.in_remote else "no"]),
            version.why or "-",
        ]
        for version in versions
    ]
    columns = ["model", "state", "since", "mIoU", "unsafe", *([f"in {remote}"] if remote else []), "reason"]
    console.out().print(console.table("champions, newest first", columns, rows))


@app.command()
def show(
    model: Annotated[Path | None, typer.Argument(metavar="[MODEL]", help="Bundle; default: $DRONESEG_MODEL.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Write the manifest to stdout.")] = False,
) -> None:
    """Show the classes, quality and origin of a model.

    The quality is measured on photographs that the model was not trained on; without such photographs, it is unknown.
    """
    from droneseg.model.bundle import read_bundle

    bundle = read_bundle(model or console.settings().model)
    if json:
        console.show_json(bundle.manifest.model_dump(mode="json"))
        return
    show_blocks(bundle)
    console.out().print(f"origin: {bundle.manifest.description}", markup=False)
    console.out().print(f"licence: {bundle.manifest.license}", markup=False)


def _version_json(version: ModelVersion) -> dict[str, Any]:
    # scripts rely on the older key and value
    entry = {"here" if name == "is_local" else name: value for name, value in asdict(version).items()}
    return entry | {"state": "before it" if version.state == "previous" else version.state}


@app.command()
def pull(
    remote: Remote = None,
    force: Annotated[
        bool,
        typer.Option("--force", help="Replace the current model even if it is not in the registry, and the zip file."),
    ] = False,
    checkpoint: Annotated[
        bool,
        typer.Option(
            "--checkpoint", help="Download the checkpoint that the champion was exported from, not the champion."
        ),
    ] = False,
    zip_file: Annotated[
        Path | None,
        typer.Option(
            "--zip",
            metavar="FILE",
            help="With --checkpoint: also write it as a zip file for nnUNetv2_install_pretrained_model_from_zip.",
        ),
    ] = None,
) -> None:
    """Download the champion from a DVC remote.

    The version is the one named in the .dvc file. Nothing else is downloaded, and git is not needed. With --checkpoint,
    nnU-Net's model folder of the champion is downloaded instead, to fine-tune, blend or export it again.
    """
    if zip_file and (not checkpoint or zip_file.suffix != ".zip"):
        reason = "must end with .zip" if checkpoint else "needs --checkpoint"
        raise typer.BadParameter(reason, param_hint="--zip")
    if checkpoint:
        _pull_checkpoint(remote, zip_file, force=force)
        return
    from droneseg.model.registry import is_known
    from droneseg.model.store import pull_model

    settings = _recovered_settings()
    with console.progress_bar("MB") as progress:
        pulled = pull_model(
            settings.model,
            remote or settings.dvc_remote,
            replace=force or is_known(settings.model),
            progress=lambda done, total: progress(round(done / 1e6), round(total / 1e6)),
        )
    origin = f"downloaded from {pulled.remote}" if pulled.fetched else "already up to date"
    console.out().print(f"{pulled.bundle.folder}: model {pulled.bundle.model_id}, {origin}", markup=False)


def _pull_checkpoint(remote: str | None, zip_file: Path | None, *, force: bool) -> None:
    """Download the checkpoint of the champion, write its zip file, and print what to do with them."""
    from droneseg.model.checkpoint_store import pull_checkpoint

    settings = console.settings()
    if zip_file:
        console.require_nnunet()
        from droneseg.nnunet.model_sharing import require_new_file

        require_new_file(zip_file, replace=force)
    with console.progress_bar("MB") as progress:
        pulled = pull_checkpoint(
            settings.model,
            remote or settings.dvc_remote,
            replace=force,
            progress=lambda done, total: progress(round(done / 1e6), round(total / 1e6)),
        )
    _show_checkpoint(pulled)
    if zip_file:
        _zip_checkpoint(pulled, zip_file, settings, force=force)


def _zip_checkpoint(pulled: CheckpointPull, zip_file: Path, settings: Settings, *, force: bool) -> None:
    """Write a checkpoint as a zip file of nnU-Net, and print the commands that use it."""
    from droneseg.flows.checkpoints import zip_checkpoint
    from droneseg.nnunet.paths import finds_our_trainer, trainer_path

    installed = zip_checkpoint(settings.model, pulled, zip_file, replace=force)
    console.out().print(f"{zip_file}: {installed.folder}", markup=False)
    commands = [
        ["nnUNetv2_install_pretrained_model_from_zip", str(zip_file)],
        ["nnUNetv2_predict", *installed.options, "-i", "IMAGES", "-o", "MASKS"],
    ]
    if not finds_our_trainer():
        commands.insert(0, ["export", f"nnUNet_extTrainer={trainer_path()}"])
    for command in commands:
        console.out().print(f"next: {shlex.join(command)}", markup=False)


def _show_checkpoint(pulled: CheckpointPull) -> None:
    from droneseg.core.files import read_json
    from droneseg.model.checkpoint_store import UNKNOWN_LICENCE
    from droneseg.nnunet.plans import pretrained_overrides

    record = pulled.record
    origin = f"downloaded from {pulled.remote}" if pulled.fetched else "already up to date"
    console.out().print(f"{pulled.folder}: checkpoint of model {record.model_id or 'unknown'}, {origin}", markup=False)
    if record.is_of_another_model:
        console.err().print(
            f"note: it is not the checkpoint of the champion, which is model {record.champion_id}. Its author can "
            "store that with `droneseg models push --checkpoint MODEL_FOLDER`.",
            markup=False,
        )
    console.out().print(f"licence: {record.licence or UNKNOWN_LICENCE}", markup=False)
    weights = min(pulled.folder.glob("fold_*/checkpoint_*.pth"))
    overrides = pretrained_overrides(read_json(pulled.folder / "plans.json", expected="Pull it again with --force."))
    console.show_next("train", *overrides, "configuration=2d_mine", f"weights={weights}")
    console.show_next("export", "--from", pulled.folder, "--out", "exported")


@app.command()
def push(
    remote: Remote = None,
    checkpoint: Annotated[
        Path | None,
        typer.Option(
            "--checkpoint",
            metavar="MODEL_FOLDER",
            help="Store and upload the checkpoint of the champion, not the champion: nnU-Net's model folder that it "
            "was exported from.",
        ),
    ] = None,
) -> None:
    """Upload the champion to a DVC remote.

    Files that the remote already stores are not uploaded again. With --checkpoint, the weights that the champion was
    exported from are stored for fine-tuning, without the state of the optimiser and the names of photographs.
    """
    from droneseg.model.store import push_model

    settings = _recovered_settings()
    remote = remote or settings.dvc_remote
    if checkpoint:
        console.require_nnunet()
        from droneseg.flows.checkpoints import store_checkpoint

        target = store_checkpoint(settings.model, checkpoint, remote)
        stored, changed = "the checkpoint of the champion", ["nnunet-model.dvc", ".gitignore"]
    else:
        target, stored, changed = push_model(settings.model, remote), str(settings.model), []
    console.out().print(f"{stored} is stored in {target}", markup=False)
    if str(Path.cwd()) in target:
        changed.append("dvc-remote")
    if changed:
        console.out().print(f"next: git add {' '.join(changed)} && git commit && git push", markup=False)


def _recovered_settings() -> Settings:
    """Undo a promotion that was killed, if any, and return the settings."""
    from droneseg.flows.transaction import recover_unfinished

    settings = console.settings()
    recover_unfinished(settings.model)
    return settings


@app.command()
def compare(
    first: Annotated[Path, typer.Argument(metavar="A", help="Bundle of the current model.")],
    second: Annotated[Path, typer.Argument(metavar="B", help="Bundle of the model that may replace it.")],
    data: EvaluationData,
    split: SplitFile = None,
    part: ValPart = None,
    gsd: console.Gsd = None,
    height: console.Height = None,
    plain: console.Plain = False,
    report: ReportFolder = Path("comparison"),
    force: Annotated[bool, typer.Option("--force", help="Replace the report if it exists.")] = False,
    json: Json = False,
) -> None:
    """Compare two models on the same images.

    Shows the metrics of both with 95 % confidence intervals of the differences.
    """
    from droneseg.core.files import check_writable
    from droneseg.evaluation.report import REPORT_MARKER
    from droneseg.flows.promote import compare_models

    view = console.view_options(gsd, height, plain=plain)
    part_name = console.choose_part(split, part, default=Part.VAL)
    check_writable(report, marker=REPORT_MARKER, replace=force)
    with console.progress_bar("images") as progress:
        comparison = compare_models(
            first,
            second,
            data,
            report,
            settings=console.settings(),
            split_file=split,
            part=part_name,
            view=view,
            replace=force,
            progress=lambda _name, done, total: progress(done, total),
        )
    if json:
        console.show_json(comparison.model_dump(mode="json"))
        return
    console.out().print(_comparison_table(comparison))
    if comparison.landing_note:
        console.err().print(f"note: {comparison.landing_note}", markup=False)
    console.out().print(f"report: {report / 'report.md'}", markup=False)


def _comparison_table(report: ComparisonReport) -> Table:
    from droneseg.evaluation.report import figure_title, interval_text, number, significance_label

    rows = [
        [
            figure_title(name),
            *(number(figures[name].value) for figures in report.figures),
            number(difference.value, signed=True),
            interval_text(difference),
            significance_label(difference),
        ]
        for name, difference in report.differences.items()
        if not name.startswith("dice/")
    ]
    title = "\n".join([*report.about, f"{report.images} images"])
    return console.table(title, ["metric", "A", "B", "B - A", "95 % interval", ""], rows)


@app.command()
def promote(
    candidate: Annotated[Path, typer.Argument(metavar="A", help="Bundle of the candidate.")],
    data: EvaluationData,
    split: SplitFile = None,
    part: ValPart = None,
    gsd: console.Gsd = None,
    height: console.Height = None,
    plain: console.Plain = False,
    force: Annotated[
        str | None,
        typer.Option("--force", metavar="REASON", help="Promote the candidate regardless of the comparison."),
    ] = None,
    report: ReportFolder = Path("comparison"),
    json: Json = False,
) -> None:
    """Make a better and not less safe model the champion.

    The candidate and the champion are compared on the same images. The candidate must be better with 95 % confidence
    and not less safe. The registry, model-registry.jsonl, and the .dvc file are committed to git.
    """
    from droneseg.flows.promote import EvaluationSpec, promote_model

    view = console.view_options(gsd, height, plain=plain)
    part_name = console.choose_part(split, part, default=Part.VAL)
    if force is not None and not force.strip():
        raise typer.BadParameter("give a reason; it is written to the registry", param_hint="--force")
    with console.progress_bar("images") as progress:
        entry = promote_model(
            candidate,
            EvaluationSpec(data, split, part_name, report, view),
            settings=console.settings(),
            force=force,
            progress=lambda _name, done, total: progress(done, total),
        )
    _show_champion(entry, json=json)


@app.command()
def rollback(
    reason: Annotated[str, typer.Option("--reason", help="Reason, written to the registry.")] = "not given",
    json: Json = False,
) -> None:
    """Make the previous model the champion again.

    Run it again to go back one more model.
    """
    from droneseg.flows.promote import roll_back

    _show_champion(roll_back(console.settings(), reason), json=json)


def _show_champion(entry: RegistryEntry, *, json: bool) -> None:
    if json:
        console.show_json(entry.model_dump(mode="json"))
        return
    replaced = f", replaces {entry.previous.model_id}" if entry.previous else ""
    console.out().print(f"champion: model {entry.model.model_id}{replaced} (reason: {entry.reason})", markup=False)
    console.out().print("next: droneseg models push; git push; POST /admin/reload on running services", markup=False)
    _show_stored_checkpoint(entry)


def _show_stored_checkpoint(entry: RegistryEntry) -> None:
    """Print how to store the checkpoint of the new champion, unless it is the stored one."""
    from droneseg.model.checkpoint_store import read_record

    record = read_record(console.settings().model)
    if record and record.model_id == entry.model.model_id:
        return
    stored = f"nnunet-model.dvc has the checkpoint of model {record.model_id or 'unknown'}; " if record else ""
    restore = ", or check out its older version with git" if record and entry.action == "rollback" else ""
    console.out().print(
        f"for fine-tuning: {stored}store that of this model with `droneseg models push --checkpoint MODEL_FOLDER`"
        f"{restore}",
        markup=False,
    )


@app.command()
def reference(
    model: Annotated[Path, typer.Argument(metavar="A", help="Bundle of the model.")],
    data: EvaluationData,
    out: Annotated[Path, typer.Option(help="Bundle to write.", show_default=False)],
    split: SplitFile = None,
    part: ValPart = None,
    gsd: console.Gsd = None,
    height: console.Height = None,
    quality: Annotated[
        bool, typer.Option("--quality", help="Also measure the model again on these images, with their true masks.")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace the bundle if it exists.")] = False,
) -> None:
    """Write a copy of a model with a new drift reference.

    Use it when the images have changed permanently, or after `droneseg models upgrade`. `droneseg export` makes the
    first reference from the validation images.
    """
    from droneseg.flows.export import add_reference

    view = console.view_options(gsd, height, plain=False)
    part_name = console.choose_part(split, part, default=Part.VAL)
    with console.progress_bar("images") as progress:
        bundle = add_reference(
            model,
            data,
            out,
            split_file=split,
            part=part_name,
            view=view,
            quality=quality,
            max_pixels=console.settings().max_pixels,
            replace=force,
            progress=progress,
        )
    drift_reference = bundle.manifest.drift_reference
    images = f", reference from {drift_reference.images} images ({drift_reference.data})" if drift_reference else ""
    console.out().print(f"{bundle.folder}: model {bundle.model_id}{images}", markup=False)


@app.command()
def upgrade(
    model: Annotated[Path, typer.Argument(metavar="A", help="Bundle of the model, of any format.")],
    out: Annotated[Path, typer.Option(help="Bundle to write.", show_default=False)],
    train_gsd: console.TrainGsd = None,
    train_gsd_range: console.TrainGsdRange = None,
    train_gsd_source: console.TrainGsdSource = None,
    data: Annotated[
        Path | None, typer.Option("--data", help="Dataset folder to calibrate the confidence and the warnings on.")
    ] = None,
    split: SplitFile = None,
    part: Annotated[Part | None, typer.Option("--part", help="Part of the split to use; default: train.")] = None,
    out_of_fold: Annotated[
        list[Path] | None,
        typer.Option(
            "--out-of-fold",
            help="Folder written by `droneseg probabilities` to calibrate on; repeatable, one for each profile.",
        ),
    ] = None,
    best_scales: console.BestScales = None,
    twin: console.Twin = None,
    force: Annotated[bool, typer.Option("--force", help="Replace the bundle if it exists.")] = False,
) -> None:
    """Write a copy of a model in the current bundle format.

    The networks stay the same, except an INT8 network that OpenVINO would compute incorrectly. With --train-gsd, images
    are resampled to the ground resolution of the training images, and large images get smaller views. With --data, the
    temperature of the confidence and the check for images unlike the training images are fitted; with --out-of-fold,
    they are fitted on predictions of models that were not trained on the images, which is better. --best-scales and
    --twin add profiles; measure them with `droneseg models reference --quality`.
    """
    from droneseg.core.files import check_writable
    from droneseg.flows.upgrade import add_blocks
    from droneseg.model.bundle import MANIFEST_NAME, read_bundle

    if data and out_of_fold:
        raise typer.BadParameter("cannot be combined with --data", param_hint="--out-of-fold")
    if split and not data:
        raise typer.BadParameter("needs --data FOLDER", param_hint="--split")
    ground = console.training_ground(train_gsd, train_gsd_range, train_gsd_source)
    profiles = console.profile_options(best_scales, twin)
    part_name = console.choose_part(split, part, default=Part.TRAIN)
    bundle = read_bundle(model)
    check_writable(out, marker=MANIFEST_NAME, replace=force)
    images = _calibration_images(data, split, part_name, bundle.manifest.class_table) if data else None
    with console.progress_bar("images") as progress:
        upgraded = add_blocks(
            bundle,
            out,
            ground=ground,
            images=images,
            maps=out_of_fold or (),
            profiles=profiles,
            progress=progress,
        )
    show_blocks(upgraded)


@app.command("calibrate-landing")
def calibrate_landing(
    model: Annotated[Path, typer.Argument(metavar="A", help="Bundle of the model.")],
    data: Annotated[
        list[Path],
        typer.Option(
            "--data",
            help="Folder of out-of-fold maps that `droneseg probabilities` wrote; repeatable, one for each profile.",
            show_default=False,
        ),
    ],
    out: Annotated[Path, typer.Option(help="Bundle to write.", show_default=False)],
    alpha: Annotated[float, typer.Option(min=0.001, max=0.5, help="Probability that a bound is too low.")] = 0.05,
    risk: Annotated[
        float,
        typer.Option(min=0.001, max=0.5, help="Accepted share of first sites that contain anything unsafe."),
    ] = 0.05,
    radius: console.Radius = None,
    radius_px: console.RadiusPx = None,
    clearance: console.Clearance = None,
    clearance_px: console.ClearancePx = None,
    clearance_people: console.ClearancePeople = None,
    clearance_people_px: console.ClearancePeoplePx = None,
    force: Annotated[bool, typer.Option("--force", help="Replace the bundle if it exists.")] = False,
    json: Json = False,
) -> None:
    """Choose the limits of a model for landing sites.

    The photographs must not be those that the model was trained on. The command chooses the largest limit of danger at
    which, with a confidence of 1 - ALPHA, at most a share RISK of the first sites contains anything unsafe. Promote the
    bundle with `droneseg models promote --force REASON`: only its manifest differs.
    """
    from droneseg.core.files import check_writable
    from droneseg.flows.landing_quality import as_json, calibrate_bundle
    from droneseg.model.bundle import MANIFEST_NAME, read_bundle

    options = console.landing_options(
        radius_m=radius,
        radius_px=radius_px,
        clearance_m=clearance,
        clearance_px=clearance_px,
        clearance_people_m=clearance_people,
        clearance_people_px=clearance_people_px,
    )
    bundle = read_bundle(model)
    check_writable(out, marker=MANIFEST_NAME, replace=force)
    with console.progress_bar("photographs") as progress:
        calibrated = calibrate_bundle(
            bundle,
            data,
            out,
            options,
            alpha=alpha,
            largest_risk=risk,
            progress=progress,
        )
    if json:
        console.show_json(
            {profile: as_json(result) for profile, result in calibrated.by_profile.items()}
            | {"model_id": calibrated.bundle.model_id}
        )
        return
    for profile, result in calibrated.by_profile.items():
        rows = [
            [
                f"{limit:g}" + (" *" if result.policy and limit == result.policy.danger_limit else ""),
                f"{one.with_site} of {one.photographs}",
                *map(console.failures, (one.unsafe, one.much_unsafe, one.unsafe_places, one.people_near)),
                f"{one.false_abstentions.failures} of {one.false_abstentions.number}",
            ]
            for limit, one in result.curve.items()
        ]
        columns = ["danger below", "with a site", "unsafe", "over 1 % unsafe", "unsafe places", "people near", "missed"]
        console.out().print(console.table(f"profile {profile}; * chosen", columns, rows))
        if unlabelled := max(one.unlabelled for one in result.curve.values()):
            console.err().print(
                f"note: profile {profile}: up to {unlabelled} first sites have too few labelled pixels and are not "
                "counted"
            )
    console.out().print(f"{calibrated.bundle.folder}: model {calibrated.bundle.model_id}", markup=False)


def _calibration_images(data: Path, split: Path | None, part: str, classes: ClassTable) -> CalibrationImages:
    from droneseg.flows.export import choose_pairs
    from droneseg.flows.upgrade import CalibrationImages

    source = f"{part} part of {split.name}" if split else f"photographs of {data.name}"
    seen = ", which the network was trained on" if part == Part.TRAIN else ""
    pairs = choose_pairs(data, split, part, classes=classes)
    return CalibrationImages(f"{len(pairs)} images, {source}{seen}", pairs, max_pixels=console.settings().max_pixels)


def show_blocks(bundle: Bundle) -> None:
    """Print what a bundle states about classes, quality, scale, calibration and self-check."""
    console.out().print(f"{bundle.folder}: model {bundle.model_id}", markup=False)
    for name, finding in describe_blocks(bundle.manifest).items():
        console.out().print(f"{name}: {finding}", markup=False)


def describe_blocks(manifest: Manifest) -> dict[str, str]:
    """Return what a manifest says about format, classes, quality, scale, calibration and self-check, in words."""
    from droneseg.model.bundle import NOT_MEASURED

    ground, calibration, quality = manifest.ground, manifest.calibration, manifest.quality or {}
    classes = [f"{entry.name} ({entry.role})" if entry.role else entry.name for entry in manifest.class_table]
    uncalibrated = "none; add it with `droneseg models upgrade --data`"
    return {
        "bundle format": str(manifest.format_version),
        "ground resolution": (
            f"{ground.gsd_m:g} m per pixel, {ground.gsd_range_m[0]:g} to {ground.gsd_range_m[1]:g} ({ground.source})"
            if ground
            else "unknown, so images are not resampled; set it with `droneseg models upgrade --train-gsd`"
        ),
        "classes": ", ".join(classes),
        "quality": NOT_MEASURED if quality.get("miou") is None else f"mIoU {quality['miou']:.3f} ({quality['data']})",
        "landing sites": _describe_landing(manifest),
        "profiles": ", ".join(_describe_profile(manifest, name) for name in manifest.profiles),
        "temperature": f"{calibration.temperature:g} ({calibration.source})" if calibration else uncalibrated,
        "unlike-training check": (
            f"present ({calibration.unlike_training.source})"
            if calibration and calibration.unlike_training
            else uncalibrated
        ),
        "self-check": "present" if manifest.self_check else "none; add it with `droneseg models upgrade`",
    }


def _describe_landing(manifest: Manifest) -> str:
    """Return what the limits for landing sites are based on, or that the model has no landing role."""
    classes = manifest.class_table
    if not classes.has(Role.LANDING):
        return f"{classes.landing_note[0].lower()}{classes.landing_note[1:-1]}"
    measured = [
        f"{name} (at most {policy.bound:.1%} of the first sites unsafe, {policy.calibrated_on})"
        for name, policy in manifest.landing.items()
        if policy.bound is not None
    ]
    default = "default limits without a bound; calibrate them with `droneseg models calibrate-landing`"
    return f"calibrated for {', '.join(measured)}" if measured else default


def _describe_profile(manifest: Manifest, name: str) -> str:
    profile = manifest.profiles[name]
    sizes = f"{len(profile.scales)} scales" if len(profile.scales) > 1 else ""
    temperature = f"temperature {profile.temperature:g}" if profile.temperature is not None else ""
    facts = ["default" if name == manifest.default_profile else "", sizes, temperature]
    return f"{name} ({', '.join(filter(None, facts))})" if any(facts) else name


@app.command()
def blend(
    first: Annotated[Path, typer.Argument(metavar="A", help="nnU-Net's model folder.")],
    second: Annotated[Path, typer.Argument(metavar="B", help="Model folder of the model fine-tuned from A.")],
    out: Annotated[Path, typer.Option(help="Model folder to write.", show_default=False)],
    share: Annotated[float, typer.Option(min=0, max=1, help="Weight of B, from 0 to 1.")] = 0.5,
    force: Annotated[bool, typer.Option("--force", help="Replace an earlier blend, never a trained model.")] = False,
) -> None:
    """Blend the weights of a model and its fine-tuned copy.

    A model fine-tuned on new flights often gets worse on old ones. Interpolated weights often work well on both.
    """
    console.require_nnunet()
    from droneseg.nnunet.checkpoint import interpolate_weights

    interpolate_weights(first, second, out, share=share, replace=force)
    console.out().print(f"blended: {out}", markup=False)
    console.show_next("export", "--from", out)
