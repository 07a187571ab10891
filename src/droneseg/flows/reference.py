"""A bundle's reference for drift: taken at export, or added to a bundle later."""

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

from droneseg.core.errors import DriftError
from droneseg.core.files import require_free
from droneseg.core.images import Image, read_image
from droneseg.flows.samples import choose_pairs
from droneseg.inference.segmenter import BundleSegmenter
from droneseg.model.bundle import MANIFEST_NAME, REFERENCE_NAME, Bundle, DriftReference, read_bundle, write_bundle
from droneseg.monitoring.drift import FEWEST, measure_reference, write_reference

MOST_OF_REFERENCE = 500


def take_reference(bundle: Bundle, images: Iterable[Image], source: str, file: Path) -> DriftReference:
    """Predict photographs with the bundle's default profile, and write their figures.

    Args:
        bundle: The model.
        images: RGB, shape (H, W, 3), dtype uint8 each.
        source: What they are, in words.
        file: Where the table goes.

    Returns:
        What the manifest says of it.
    """
    reference = measure_reference(BundleSegmenter(bundle), images, source)
    write_reference(reference, file)
    return DriftReference(file=file.name, data=source, images=reference.images)


def add_reference(
    model: Path,
    data: Path,
    out: Path,
    *,
    split_file: Path | None,
    part: str,
    max_pixels: int,
    replace: bool = False,
    progress: Callable[[int, int], None] = lambda _done, _total: None,
) -> Bundle:
    """Write a copy of a bundle with a reference for drift.

    Args:
        model: The bundle.
        data: Dataset of photographs it was not trained on.
        out: Folder of the copy.
        split_file: Take only a part of this split.
        part: Which one.
        max_pixels: Largest photograph.
        replace: Whether an older bundle there may be replaced.
        progress: Told of the photographs that are done, and of all.

    Raises:
        BundleError: If the model does not verify.
        DatasetError: If the photographs cannot be found.
        SplitError: If the split does not fit them.
        DriftError: If they are too few.
        OutputExistsError: If something is in the way.
    """
    bundle = read_bundle(model)
    require_free(out, marker=MANIFEST_NAME, replace=replace)
    pairs = choose_pairs(data, split_file, part)
    if len(pairs) < FEWEST:
        raise DriftError(f"{len(pairs)} photographs are too few for a reference; {FEWEST} are needed.")

    def images() -> Iterator[Image]:
        for done, pair in enumerate(pairs):
            progress(done, len(pairs))
            yield read_image(pair.image, max_pixels=max_pixels)
        progress(len(pairs), len(pairs))

    source = f"{part} part of {split_file.name}" if split_file else f"photographs of {data.name}"
    with TemporaryDirectory() as temporary:
        table = Path(temporary, REFERENCE_NAME)
        stated = take_reference(bundle, images(), source, table)
        files = {name: bundle.folder / name for name in bundle.manifest.files} | {REFERENCE_NAME: table}
        return write_bundle(
            out,
            lambda records: bundle.manifest.model_copy(update={"files": records, "drift_reference": stated}),
            files,
        )
