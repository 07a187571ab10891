"""Further profiles of a bundle: `best` with several scales, and `twin` with another, faster network."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from droneseg.core.errors import ConfigurationError, optional_import
from droneseg.model import bundle as bundle_format

PROFILES = {
    "exact": bundle_format.Profile(network=bundle_format.NETWORK_NAME, mirroring=True, precision="f32", half_sums=True),
    "fast": bundle_format.Profile(network=bundle_format.NETWORK_NAME, mirroring=False, precision="fastest"),
}
INT8_PROFILE = bundle_format.Profile(network=bundle_format.INT8_NETWORK_NAME, mirroring=False, precision="f32")
BEST = "best"
TWIN = "twin"
_MIN_HALVED_VALUES = 1024
"""Smallest number of values of a weight that is stored in float16; smaller ones are mostly biases and scales."""


@dataclass(frozen=True)
class ProfileOptions:
    """Profiles to add to a bundle.

    Attributes:
        best_scales: Scales of the profile `best`, relative to the model's ground resolution, one of them 1; None keeps
            the bundle's profile `best`, if any.
        twin: Bundle whose default network becomes the profile `twin`; None keeps the bundle's profile `twin`, if any.
    """

    best_scales: tuple[float, ...] | None = None
    twin: bundle_format.Bundle | None = None


NO_PROFILES = ProfileOptions()
"""No further profiles."""


def choose_profiles(default: str, *, int8: bool) -> dict[str, bundle_format.Profile]:
    """Return the profiles of an exported bundle, without further ones.

    Args:
        default: Name of the default profile.
        int8: Whether the bundle has an INT8 network.

    Raises:
        ConfigurationError: If the default profile is none of them.
    """
    profiles = PROFILES | ({"int8": INT8_PROFILE} if int8 else {})
    if default not in profiles:
        hint = " The profile int8 needs --int8." if default == "int8" else ""
        raise ConfigurationError(
            f"{default!r} cannot be the default profile; choose one of {', '.join(profiles)}.{hint}"
        )
    return profiles


def names_with(profiles: Iterable[str], options: ProfileOptions) -> set[str]:
    """Return the names of the profiles of a bundle after `add_profiles`."""
    return {*profiles, *([BEST] if options.best_scales else []), *([TWIN] if options.twin else [])}


def check_twin(manifest: bundle_format.Manifest, twin: bundle_format.Bundle) -> None:
    """Check that the network of another bundle can be a profile of this one.

    Raises:
        ConfigurationError: If the two differ in normalisation, mirror axes, ground resolution or classes; the message
            lists all differences.
    """
    other = twin.manifest
    mine, theirs = (
        {
            "normalisation": str(entry.normalisation),
            "mirror axes": entry.mirror_axes,
            "ground resolution": entry.ground.gsd_m if entry.ground else "unknown",
            "classes": ", ".join(entry.class_table.names),
        }
        for entry in (manifest, other)
    )
    differences = [f"{name} {theirs[name]} instead of {mine[name]}" for name in mine if mine[name] != theirs[name]]
    if differences:
        raise ConfigurationError(
            f"{twin.folder} cannot be the twin: it has {'; '.join(differences)}. Export a network that was trained on "
            "the same data, with the same --train-gsd."
        )


def add_profiles(
    bundle: bundle_format.Bundle, options: ProfileOptions, ground: bundle_format.TrainingGround | None, folder: Path
) -> bundle_format.Bundle:
    """Return the bundle with further profiles, which have no figures and no self-check yet.

    Args:
        bundle: Bundle of any format.
        options: Profiles to add; the bundle is returned unchanged if there are none.
        ground: Ground resolution that the bundle will have.
        folder: Existing folder for the draft.

    Raises:
        ConfigurationError: If the twin is not compatible with the bundle.
        MissingDependencyError: If there is a twin, and the extra `train` is not installed.
    """
    profiles = dict(bundle.manifest.profiles)
    files = {name: bundle.folder / name for name in bundle.manifest.files}
    if options.best_scales:
        network = profiles[bundle.manifest.default_profile].network
        profiles[BEST] = bundle_format.Profile(
            network=network, mirroring=True, precision="fastest", scales=options.best_scales
        )
    if options.twin:
        check_twin(bundle.manifest.model_copy(update={"ground": ground}), options.twin)
        profiles[TWIN] = twin_profile(options.twin)
        files[bundle_format.TWIN_NETWORK_NAME] = folder / bundle_format.TWIN_NETWORK_NAME
        halve_weights(
            options.twin.network(options.twin.manifest.default_profile), files[bundle_format.TWIN_NETWORK_NAME]
        )
    if profiles == bundle.manifest.profiles:
        return bundle
    return bundle_format.write_bundle(
        folder / "profiles",
        lambda records: bundle.manifest.model_copy(update={"profiles": profiles, "files": records}),
        files,
    )


def twin_profile(twin: bundle_format.Bundle) -> bundle_format.Profile:
    """Return the profile `twin`: the default profile of another bundle, with its patch size and temperature."""
    manifest = twin.manifest
    default = manifest.default_profile
    chosen = manifest.profiles[default]
    return chosen.model_copy(
        update={
            "network": bundle_format.TWIN_NETWORK_NAME,
            "patch_size": manifest.patch_of(default),
            "divisor": chosen.divisor or manifest.divisor,
            "temperature": manifest.temperature_of(default),
            "figures": {},
        }
    )


def halve_weights(network: Path, target: Path) -> None:
    """Write a copy of a network whose float32 weights are stored in float16, which halves the file.

    A cast to float32 follows each weight. Runtimes compute it once, when they load the network, so the speed and the
    precision of the computation stay the same; only the weights are rounded, by at most 0.05 %.

    Args:
        network: ONNX file.
        target: File to write.

    Raises:
        MissingDependencyError: If the package onnx is not installed.
    """
    with optional_import("onnx", "train"):
        import onnx
        from onnx import TensorProto, helper, numpy_helper
    model = onnx.load(str(network))
    casts = []
    for initializer in model.graph.initializer:
        values = numpy_helper.to_array(initializer)
        largest = np.finfo(np.float16).max
        if values.dtype != np.float32 or values.size < _MIN_HALVED_VALUES or np.abs(values).max() > largest:
            continue
        name = initializer.name
        stored = f"{name}_float16"
        initializer.CopyFrom(numpy_helper.from_array(values.astype(np.float16), stored))
        casts.append(helper.make_node("Cast", [stored], [name], name=f"{name}_cast", to=TensorProto.FLOAT))
    # before the nodes that use them, as ONNX requires
    nodes = list(model.graph.node)
    del model.graph.node[:]
    model.graph.node.extend([*casts, *nodes])
    onnx.checker.check_model(model)
    onnx.save(model, str(target))
