"""`droneseg export`: a trained model becomes a bundle."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from droneseg.cli import environment, output

if TYPE_CHECKING:
    from droneseg.model.bundle import Bundle
    from droneseg.nnunet.paths import Layout


def export(
    source: Annotated[
        Path | None,
        typer.Option("--from", help="Model folder of nnU-Net; default: the only one below nnUNet_results."),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder of the bundle; default: $DRONESEG_MODEL.")] = None,
    checkpoint: Annotated[str, typer.Option(help="Checkpoint file in each fold.")] = "checkpoint_final.pth",
    fold: Annotated[list[int] | None, typer.Option(help="Fold to take, repeatable; default: all, averaged.")] = None,
    int8: Annotated[bool, typer.Option("--int8", help="Add a calibrated INT8 network as a profile.")] = False,
    default_profile: Annotated[str, typer.Option(help="Profile used unless another is named.")] = "fast",
    licence: Annotated[
        str, typer.Option("--license", help="Terms of the weights.")
    ] = "the terms of the data it was trained on",
    images: Annotated[int, typer.Option(min=4, help="Photographs to measure on, at most.")] = 8,
    trust: Annotated[
        bool, typer.Option("--trust", help="Load a checkpoint that pickles code: only if you know where it is from.")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace the bundle that is there.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Write the manifest to stdout.")] = False,
) -> None:
    """Make a bundle of a trained model: no pickle, no torch.

    The exported network is held against the trained one, and every profile is measured on the validation part.
    """
    from droneseg.core.files import require_free
    from droneseg.model.bundle import MANIFEST_NAME

    settings = environment.settings()
    target = out or settings.model
    require_free(target, marker=MANIFEST_NAME, replace=force)
    environment.require_nnunet()
    from droneseg.flows.export import export_model
    from droneseg.nnunet.paths import Layout

    layout = Layout.from_settings(settings)
    model_folder = source or _only_model(layout)
    bundle = export_model(
        model_folder,
        layout,
        target,
        checkpoint=checkpoint,
        folds=tuple(fold) if fold else None,
        trust=trust,
        int8=int8,
        default_profile=default_profile,
        licence=licence,
        images=images,
        report=lambda step: output.err().print(f"{step} ...", markup=False),
    )
    _send(bundle, model_folder)
    if json:
        output.show_json(bundle.manifest.model_dump(mode="json"))
        return
    _show(bundle)


def _show(bundle: "Bundle") -> None:
    manifest = bundle.manifest
    rows = [
        [
            f"{name}{' (default)' if name == manifest.default_profile else ''}",
            output.percent(profile.figures["agreement_with_exact"], 2),
            output.figure(profile.figures["miou"]),
        ]
        for name, profile in manifest.profiles.items()
    ]
    source_of_figures = (manifest.quality or {}).get("data", "")
    output.out().print(output.table(f"on {source_of_figures}", ["profile", "as exact", "mIoU"], rows))
    output.out().print(f"{bundle.folder}: model {bundle.model_id}, {manifest.description}", markup=False)


def _send(bundle: "Bundle", model_folder: Path) -> None:
    """Send the bundle to W&B if the training was tracked; whether or not that works, the bundle is made."""
    from droneseg.core.errors import DronesegError
    from droneseg.model.bundle import MANIFEST_NAME
    from droneseg.nnunet.wandb_logger import choose_mode, send_bundle

    key = environment.settings().wandb_api_key
    choose_mode("auto", api_key=key.get_secret_value() if key else None)
    provenance = bundle.manifest.provenance
    try:
        run = send_bundle(
            model_folder / f"fold_{provenance.folds[0]}",
            bundle.folder,
            [MANIFEST_NAME, *bundle.manifest.files],
            bundle.manifest.model_dump(mode="json"),
            name=f"bundle-{provenance.configuration}",
        )
    except DronesegError as error:
        output.err().print(f"the bundle was not sent to W&B: {error}", markup=False)
        return
    if run:
        output.err().print(f"the bundle is an artifact of run {run} of W&B", markup=False)


def _only_model(layout: "Layout") -> Path:
    """Return the only trained model there is: nothing is chosen in silence."""
    from droneseg.core.errors import ModelError
    from droneseg.nnunet.paths import trained_folders

    found = trained_folders(layout.results)
    if len(found) == 1:
        return found[0]
    if not found:
        raise ModelError(f"No trained model below {layout.results}. Train one with `droneseg train`.")
    listed = "".join(f"\n  - {folder}" for folder in found)
    raise ModelError(f"Several trained models below {layout.results}. Name one with --from:{listed}")
