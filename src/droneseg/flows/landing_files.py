"""Landing sites of photographs: from files to answers, drawings and MAVLink messages."""

import math
from collections.abc import Iterator, Sequence
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from droneseg.core.errors import DronesegError, OutputExistsError
from droneseg.core.files import write_bytes, write_text
from droneseg.core.image_files import ImageFiles
from droneseg.core.images import decode_image, encode_png
from droneseg.core.overlay import Ring, draw_sites
from droneseg.core.prediction import Segmenter
from droneseg.inference.batch import ViewOptions
from droneseg.inference.landing import LandingAnswer, LandingOptions, LandingSite, find_sites

ANSWER_SUFFIX = "_landing.json"
DRAWING_SUFFIX = "_landing.png"
_BODY_FRD = 12  # MAV_FRAME_BODY_FRD
_VISION_OTHER = 3  # LANDING_TARGET_TYPE_VISION_OTHER


class LandResult(BaseModel):
    """Landing sites of one file.

    Attributes:
        source: Path of the photograph.
        size: Height and width of the photograph; None if it could not be read.
        answer: The answer; None if the file failed.
        error: Error message, if it failed.
    """

    model_config = ConfigDict(frozen=True)

    source: str
    size: tuple[int, int] | None = None
    answer: LandingAnswer | None = None
    error: str | None = None


def require_landing_output(sources: Sequence[ImageFiles], out: Path, *, overlay: bool) -> None:
    """Check, before any prediction, that the answers can be written and that no drawing replaces an input image.

    Args:
        sources: Photographs.
        out: Folder for the answers and drawings.
        overlay: Whether drawings are written.

    Raises:
        OutputExistsError: If `out` is a file, or drawings would replace input images; the message lists all of them.
    """
    if out.exists() and not out.is_dir():
        raise OutputExistsError(f"{out} is a file and was not changed. Choose a folder for --out.")
    inputs = {file.resolve() for source in sources for file in source.all_files}
    drawings = [out / f"{source.stem}{DRAWING_SUFFIX}" for source in sources] if overlay else []
    problems = [f"  - {drawing} is an input image" for drawing in drawings if drawing.resolve() in inputs]
    if problems:
        raise OutputExistsError("\n".join(["No site was searched. Choose another folder for --out:", *problems]))


def land_files(
    segmenter: Segmenter,
    sources: Sequence[ImageFiles],
    options: LandingOptions,
    out: Path | None,
    *,
    view: ViewOptions,
    overlay: bool = False,
    max_pixels: int,
) -> Iterator[LandResult]:
    """Find the landing sites of photographs one by one; a file that fails does not affect the others.

    Args:
        segmenter: Segmenter to use.
        sources: Photographs with distinct stems.
        options: Requirements for the sites.
        out: Folder for the answers and drawings; None writes nothing.
        view: How the photographs are presented to the model.
        overlay: Whether to draw the sites over the photographs.
        max_pixels: Largest accepted photograph, in pixels.

    Yields:
        One result per file, in the order of `sources`.
    """
    for source in sources:
        try:
            data = source.read(max_pixels=max_pixels)
            image = decode_image(data, max_pixels=max_pixels)
            prediction = segmenter.segment(image, view.read_ground(data), plain=view.plain, landing=True)
            answer = find_sites(prediction, segmenter.landing_policy, options)
            if out:
                write_text(
                    out / f"{source.stem}{ANSWER_SUFFIX}", answer.model_dump_json(by_alias=True, indent=2) + "\n"
                )
            if out and overlay:
                decision = answer.message if answer.sites else f"No landing site. {answer.message}"
                drawing = draw_sites(image, prediction, rings_of(answer), decision, name=source.file.name)
                write_bytes(out / f"{source.stem}{DRAWING_SUFFIX}", encode_png(drawing))
        except DronesegError as error:
            yield LandResult(source=str(source), error=str(error))
            continue
        except OSError as error:
            yield LandResult(source=str(source), error=f"{error.filename or source}: {error.strerror or error}")
            continue
        yield LandResult(source=str(source), size=image.shape[:2], answer=answer)


def rings_of(answer: LandingAnswer) -> list[Ring]:
    """Return the rings to draw for each site: the requested disc, and the largest disc around the same centre."""
    radius = answer.policy.radius_px or 0.0
    return [Ring(site.x_px, site.y_px, radius, site.radius_px, f"{site.rank}: {_size(site)}") for site in answer.sites]


def _size(site: LandingSite) -> str:
    return f"{site.radius_px:.0f} px" if site.radius_m is None else f"{site.radius_m:.1f} m"


def mavlink_fields(result: LandResult, view: ViewOptions) -> dict[str, float | int | None]:
    """Return the fields of the MAVLink message LANDING_TARGET for the best site; empty if there is no site.

    The camera is assumed to look straight down. See https://mavlink.io/en/messages/common.html#LANDING_TARGET.

    Args:
        result: Result with an answer.
        view: How the photograph was presented to the model.

    Returns:
        Fields by name. Angles from the optical axis, to the right and downwards in the image, and sizes are in radians;
        the distance from the camera to the site is in metres. They are null unless the ground resolution was computed
        from a height and the focal length.
    """
    answer, size = result.answer, result.size
    if answer is None or size is None or not answer.sites:
        return {}
    site, ground = answer.sites[0], answer.ground
    fields: dict[str, float | int | None] = {
        "target_num": 0,
        "frame": _BODY_FRD,
        "angle_x": None,
        "angle_y": None,
        "distance": None,
        "size_x": None,
        "size_y": None,
        "type": _VISION_OTHER,
        "position_valid": 0,
    }
    # a height in the metadata does not match the ground resolution of an argument or a georeference
    if ground.height_m and ground.gsd_m and view.gsd_m is None and ground.source != "georeference":
        focal_px = ground.height_m / ground.gsd_m
        height, width = size
        right, down = site.x_px - (width - 1) / 2, site.y_px - (height - 1) / 2
        angle = 2 * math.atan(site.radius_px / focal_px)
        fields |= {
            "angle_x": math.atan(right / focal_px),
            "angle_y": math.atan(down / focal_px),
            "distance": ground.gsd_m * math.hypot(focal_px, right, down),
            "size_x": angle,
            "size_y": angle,
        }
    return fields
