"""A model by its folder: verified, and ready to predict."""

from pathlib import Path

from droneseg.core.settings import RuntimeName, Settings
from droneseg.inference.segmenter import BundleSegmenter
from droneseg.model.bundle import read_bundle


def load_segmenter(
    settings: Settings, *, model: Path | None = None, profile: str | None = None, runtime: RuntimeName | None = None
) -> BundleSegmenter:
    """Load the model that the settings name.

    Args:
        settings: Of the environment.
        model: Another bundle than theirs.
        profile: Another profile than theirs.
        runtime: Another runtime than theirs.

    Raises:
        BundleError: If the bundle does not verify.
        ConfigurationError: If it has no such profile.
        ModelError: If the runtime cannot run it.
    """
    return BundleSegmenter(
        read_bundle(model or settings.model),
        profile=profile or settings.profile,
        runtime=runtime or settings.runtime,
        cache=settings.cache_dir.expanduser() / "openvino",
    )
