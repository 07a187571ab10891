"""Checks of what nnU-Net wrote: whether a bundle can predict as nnU-Net would."""

import json
import pickletools
from collections.abc import Mapping, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

from droneseg.core.class_files import classes_of
from droneseg.core.errors import ConfigurationError
from droneseg.core.files import read_json
from droneseg.nnunet.paths import FINGERPRINT_NAME

_CHANNELS = 3
_POSTPROCESSING = ("postprocessing", "crossval_results_folds_*/postprocessing")
"""Files of nnU-Net's postprocessing without their suffixes, .json and .pkl."""
_GLOBALS = ("GLOBAL", "STACK_GLOBAL", "INST")  # the instructions of a pickle file that name functions


def problems_of(
    folder: Path, dataset: Mapping[str, Any], configuration: Mapping[str, Any], *, apply_postprocessing: bool
) -> list[str]:
    """Return why a bundle could not predict as nnU-Net would, each with a remedy; empty if it can.

    Args:
        folder: Model folder.
        dataset: nnU-Net's dataset.json.
        configuration: Configuration of the plans, merged with those it inherits from.
        apply_postprocessing: Whether nnU-Net's postprocessing, if any was found useful, belongs to the model.
    """
    found = [
        *_problems_of_labels(dataset),
        *_problems_of_channels(dataset),
        *_problems_of_configuration(configuration),
        *_problems_of_spacing(folder, configuration),
    ]
    return [*found, *(_problems_of_postprocessing(folder, dataset) if apply_postprocessing else [])]


def _problems_of_labels(dataset: Mapping[str, Any]) -> list[str]:
    regions = [name for name, value in dataset.get("labels", {}).items() if isinstance(value, list | tuple)]
    if regions or dataset.get("regions_class_order"):
        problem = f"it predicts overlapping regions ({', '.join(regions)}), and a bundle predicts one class per pixel."
        return [f"{problem} Train with one label per class."]
    try:
        classes_of(dataset)
    except ConfigurationError as error:
        return [f"{error}. Use labels with the numbers from 0, of which 0 is the background."]
    return []


def _problems_of_channels(dataset: Mapping[str, Any]) -> list[str]:
    names = [str(name) for name in dataset.get("channel_names", dataset.get("modality", {})).values()]
    if len(names) == _CHANNELS:
        return []
    return [f"it has {len(names)} channels ({', '.join(names)}), and a bundle takes RGB images. Train with RGB images."]


def _problems_of_configuration(configuration: Mapping[str, Any]) -> list[str]:
    patch = configuration.get("patch_size", [])
    if len(patch) != 2:
        return [f"it is a {len(patch)}D configuration. Export a 2D configuration."]
    if configuration.get("previous_stage"):
        return ["it is the second stage of a cascade. Export a configuration without a previous stage."]
    return []


def _problems_of_spacing(folder: Path, configuration: Mapping[str, Any]) -> list[str]:
    """Return a problem if nnU-Net resamples images: a bundle does not know the spacing of an image."""
    fingerprint = folder / FINGERPRINT_NAME
    if not fingerprint.is_file():
        return []
    spacings = json.loads(fingerprint.read_text(encoding="utf-8")).get("spacings", [])
    different = sorted({_shown(spacing[-2:]) for spacing in spacings})
    target = _shown(configuration.get("spacing", [])[-2:])
    if not different or different == [target]:
        return []
    problem = f"nnU-Net resamples its images of the spacings {', '.join(different)} to {target}"
    return [f"{problem}, and a bundle does not know the spacing of an image. Train with images of one spacing."]


def _shown(spacing: Sequence[float]) -> str:
    return "x".join(f"{value:g}" for value in spacing)


def _problems_of_postprocessing(folder: Path, dataset: Mapping[str, Any]) -> list[str]:
    """Return a problem if nnU-Net found postprocessing useful."""
    files = dict.fromkeys(f.with_suffix("") for name in _POSTPROCESSING for f in sorted(folder.glob(f"{name}.*")))
    steps = [step for file in files for step in _postprocessing_steps(file, dataset.get("labels", {}))]
    if not steps:
        return []
    problem = f"nnU-Net's postprocessing ({', '.join(dict.fromkeys(steps))}) belongs to it, and a bundle has none."
    remedy = "Export the network alone with --no-postprocessing, and apply nnUNetv2_apply_postprocessing to the masks"
    return [f"{problem} {remedy} of `droneseg predict --format ids`."]


def _postprocessing_steps(file: Path, labels: Mapping[str, Any]) -> list[str]:
    """Return what nnU-Net's postprocessing does, with the names of the classes.

    Args:
        file: File without suffix: with `.json`, it describes what `.pkl` contains.
        labels: Labels of the dataset.
    """
    described, pickled = file.with_suffix(".json"), file.with_suffix(".pkl")
    if not described.is_file():
        return [f"{file.name}.pkl"] if pickled.is_file() and _names_functions(pickled) else []
    content = read_json(described, expected="Expected nnU-Net's description of its postprocessing.")
    functions: list[str] = content.get("postprocessing_fns", [])
    arguments: list[dict[str, Any]] = content.get("postprocessing_kwargs", [])
    names = {value: name for name, value in labels.items() if isinstance(value, int)}
    steps = []
    for function, options in zip_longest(functions, arguments[: len(functions)]):
        given = (options or {}).get("labels_or_regions", [])
        classes = [str(names.get(label, label)) for label in (given if isinstance(given, list) else [given])]
        steps.append(f"{function} of {' and '.join(classes)}" if classes else str(function))
    return steps


def _names_functions(file: Path) -> bool:
    """Return whether a pickle file names functions, without loading it, which could execute any code."""
    try:
        return any(instruction.name in _GLOBALS for instruction, _, _ in pickletools.genops(file.read_bytes()))
    except ValueError:
        return True  # no valid pickle file
