"""Public Python API: load a model, call it with photographs, use the results; `droneseg` re-exports it."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from os import PathLike
from pathlib import Path
from typing import TypeAlias

import numpy as np
from PIL import Image as pillow
from pydantic import ValidationError

from droneseg.core import errors
from droneseg.core.camera import Ground, PredictionWarning, given_ground, read_ground
from droneseg.core.classes import ClassTable
from droneseg.core.files import write_bytes
from droneseg.core.image_files import group_channels
from droneseg.core.images import SUFFIXES, Image, decode_image, encode_png, pillow_to_rgb, read_bytes, require_rgb
from droneseg.core.landing_grid import LandingPolicy
from droneseg.core.masks import Mask, encode_mask
from droneseg.core.overlay import describe_ground, draw_prediction
from droneseg.core.prediction import ModelInfo, Prediction, Segmenter
from droneseg.core.runtimes import RuntimeName
from droneseg.core.settings import Settings, load_settings
from droneseg.inference.batch import OVERLAY_SUFFIX
from droneseg.inference.landing import LandingAnswer, LandingOptions, describe_problems, find_sites
from droneseg.inference.segmenter import load_segmenter

Photo: TypeAlias = str | PathLike[str] | bytes | pillow.Image | Image
"""Path, content of an image file, Pillow image, or RGB array of shape (H, W, 3) and dtype uint8."""

_NOTEBOOK_SIDE = 1024  # pixels; a full-size overlay would make notebooks tens of megabytes large
_SHOWN_SHARE = 0.005


@dataclass(frozen=True, repr=False, eq=False)
class Result:
    """Prediction for one photograph, together with the photograph.

    Attributes:
        prediction: Prediction; the properties below return parts of it.
        image: The upright photograph, RGB, shape (H, W, 3), dtype uint8.
        source: Path of the photograph; None if it was not read from a file.
        landing_policy: Limits of the model for landing sites.
        predict_again: Function that predicts the photograph again, with what landing sites need.
    """

    prediction: Prediction
    image: Image
    source: Path | None
    landing_policy: LandingPolicy
    predict_again: Callable[[], Prediction]

    @property
    def mask(self) -> Mask:
        """Class ids, shape (H, W) of the upright photograph, dtype uint8; see `classes`."""
        return self.prediction.mask

    @property
    def classes(self) -> ClassTable:
        """Classes of the mask with their ids, names, colours and roles."""
        return self.prediction.classes

    @property
    def class_fractions(self) -> dict[str, float]:
        """Share of pixels by class name, 0 to 1, for all classes."""
        return self.prediction.class_fractions

    @property
    def confidence(self) -> float:
        """Mean probability of the predicted class over all pixels, 0 to 1."""
        return self.prediction.confidence

    @property
    def ground(self) -> Ground:
        """Ground resolution of the photograph, and how it was resampled for the model."""
        return self.prediction.ground

    @property
    def warnings(self) -> tuple[PredictionWarning, ...]:
        """Warnings about the prediction, each with a stable `code` and a `message` in words."""
        return self.prediction.warnings

    @property
    def model_id(self) -> str:
        """Id of the model."""
        return self.prediction.model_id

    @property
    def timings_s(self) -> dict[str, float]:
        """Seconds by stage: decode, preprocess, network and postprocess."""
        return self.prediction.timings_s

    def landing_sites(
        self,
        *,
        radius_m: float | None = None,
        radius_px: float | None = None,
        clearance_m: float | None = None,
        clearance_px: float | None = None,
        clearance_people_m: float | None = None,
        clearance_people_px: float | None = None,
        max_sites: int = 5,
        allow: str | Sequence[str] = (),
    ) -> LandingAnswer:
        """Return the discs on which a drone can land, or the reason why there is none.

        Clearances are measured from the rim of the disc; `droneseg.inference.landing.LandingOptions` describes the
        defaults. The answer is advisory: slope, wires, wind and later movements cannot be seen in a photograph. The
        first call predicts the photograph again, unless it was segmented with `landing=True`.

        Args:
            radius_m: Radius of the disc in metres; it needs a known ground resolution.
            radius_px: Radius of the disc in pixels of the photograph.
            clearance_m: Distance to everything that is not safe, in metres.
            clearance_px: The same in pixels.
            clearance_people_m: Distance to people and vehicles, in metres.
            clearance_people_px: The same in pixels.
            max_sites: Largest number of sites.
            allow: Classes to land on, by name or by role (`landing`, `soft`), one or several; by default those with the
                role landing.

        Raises:
            ConfigurationError: If a length is given in both units or is out of range, or a class cannot be allowed.
        """
        try:
            options = LandingOptions(
                radius_m=radius_m,
                radius_px=radius_px,
                clearance_m=clearance_m,
                clearance_px=clearance_px,
                clearance_people_m=clearance_people_m,
                clearance_people_px=clearance_people_px,
                max_sites=max_sites,
                allow=allow if isinstance(allow, str) else tuple(allow),
            )
        except ValidationError as error:
            raise errors.ConfigurationError(describe_problems(error)) from error
        return find_sites(self._landing_prediction, self.landing_policy, options)

    @cached_property
    def _landing_prediction(self) -> Prediction:
        return self.predict_again() if self.prediction.landing_grid is None else self.prediction

    def overlay(self) -> pillow.Image:
        """Return the mask drawn over the photograph, with a legend and the warnings, as `predict --overlay` does."""
        return pillow.fromarray(self._draw())

    def save(self, path: str | PathLike[str], *, overlay: bool = False) -> Path:
        """Write the mask as palette PNG, with the same bytes as `droneseg predict`; an existing mask is replaced.

        Args:
            path: PNG file, or a folder, in which the mask is named after the photograph.
            overlay: Whether to also write `NAME_overlay.png` next to the mask.

        Returns:
            Path of the mask.

        Raises:
            ValueError: If `path` names a format other than PNG, or is a folder and the photograph has no file name.
            OutputExistsError: If the photograph itself would be overwritten.
        """
        target = self._target(Path(path))
        files = {target: encode_mask(self.mask, self.classes)}
        if overlay:
            files[target.with_name(f"{target.stem}{OVERLAY_SUFFIX}")] = encode_png(self._draw())
        for file in files:
            if self.source and file.resolve() == self.source.resolve():
                raise errors.OutputExistsError(f"{file} is the photograph itself. Choose another path.")
        for file, data in files.items():
            write_bytes(file, data)
        return target

    def _target(self, path: Path) -> Path:
        suffix = path.suffix.lower()
        if not path.is_dir() and suffix in SUFFIXES:
            if suffix != ".png":
                raise ValueError(f"A mask is a PNG file, not {path.name}. Choose a name that ends in .png.")
            return path
        if self.source is None:
            raise ValueError(f"{path} is a folder, and the photograph has no file name. Pass the path of a PNG file.")
        return path / f"{self.source.stem}.png"

    def _draw(self) -> Image:
        return draw_prediction(self.image, self.prediction, name=self.source.name if self.source else "")

    def _repr_png_(self) -> bytes:
        """Return the overlay for notebooks, reduced to at most 1024 pixels before the legend is drawn."""
        step = -(-max(self.mask.shape) // _NOTEBOOK_SIDE)
        small = replace(self.prediction, mask=self.mask[::step, ::step])
        photograph = pillow.fromarray(self.image).resize(small.mask.shape[::-1], pillow.Resampling.BOX)
        name = self.source.name if self.source else ""
        return encode_png(draw_prediction(np.asarray(photograph), small, name=name))

    def __repr__(self) -> str:
        """Return size, class shares, confidence, ground resolution and warning codes."""
        height, width = self.mask.shape
        shares = sorted(self.class_fractions.items(), key=lambda item: -item[1])
        parts = [
            f"{width}x{height}",
            *(f"{name} {share:.1%}" for name, share in shares if share >= _SHOWN_SHARE),
            f"confidence {self.confidence:.1%}",
            describe_ground(self.ground),
            f"warnings: {' '.join(self.ground.warnings)}" if self.ground.warnings else "",
        ]
        return f"<Result {', '.join(filter(None, parts))}>"


class Model:
    """A loaded model; call it with a photograph. Safe to use from several threads.

    Args:
        segmenter: Segmenter to call.
        max_pixels: Largest accepted image file or Pillow image, in pixels.
    """

    def __init__(self, segmenter: Segmenter, *, max_pixels: int) -> None:
        self._segmenter = segmenter
        self._max_pixels = max_pixels

    @property
    def model_id(self) -> str:
        """Short hash that identifies the model."""
        return self._segmenter.model_id

    @property
    def profile(self) -> str:
        """Name of the profile, for example `fast` or `exact`."""
        return self._segmenter.profile

    @property
    def info(self) -> ModelInfo:
        """Description of the model: version, licence, runtime and quality."""
        return self._segmenter.info

    def __call__(
        self,
        photo: Photo,
        *,
        gsd_m: float | None = None,
        height_m: float | None = None,
        plain: bool = False,
        landing: bool = False,
    ) -> Result:
        """Segment a photograph.

        EXIF orientation is applied to files and Pillow images. Without `gsd_m` and `height_m`, the ground resolution
        is read from their EXIF and XMP metadata.

        Args:
            photo: Path, content of an image file, Pillow image, or RGB array of shape (H, W, 3) and dtype uint8.
                OpenCV's arrays are BGR; convert them with `image[..., ::-1]`.
            gsd_m: Ground sample distance in metres per pixel of the photograph.
            height_m: Height of the camera above ground in metres; not for arrays, whose focal length is unknown.
            plain: Whether to apply the network to the pixels as they are, without resampling, context or exposure
                correction.
            landing: Whether `Result.landing_sites` will be called; it then need not predict the photograph again.

        Raises:
            TypeError: If `photo` is none of these types, or an array that is not uint8.
            ValueError: If an array is not RGB or is empty, or if `height_m` is given for an array.
            ImageError: If the photograph cannot be read or decoded.
            ConfigurationError: If both `gsd_m` and `height_m` are given, or one is not above 0.
        """
        begin = time.perf_counter()
        image, ground, source = self._read(photo, gsd_m, height_m)
        decode_s = round(time.perf_counter() - begin, 5)
        prediction = self._segmenter.segment(image, ground, plain=plain, landing=landing)
        prediction = replace(prediction, timings_s={"decode": decode_s, **prediction.timings_s})
        predict_again = partial(self._segmenter.segment, image, ground, plain=plain, landing=True)
        return Result(prediction, image, source, self._segmenter.landing_policy, predict_again)

    def _read(self, photo: object, gsd_m: float | None, height_m: float | None) -> tuple[Image, Ground, Path | None]:
        """Return the pixels, the ground resolution and the path of a photograph."""
        if isinstance(photo, np.ndarray):
            if height_m is not None:
                raise ValueError(
                    "height_m needs a focal length, which an array does not have. Pass gsd_m, or the file."
                )
            return require_rgb(photo), given_ground(gsd_m), None
        if isinstance(photo, pillow.Image):
            name = getattr(photo, "filename", "")
            ground = read_ground(photo, gsd_m=gsd_m, height_m=height_m)
            return pillow_to_rgb(photo, max_pixels=self._max_pixels), ground, Path(name) if name else None
        if isinstance(photo, bytes):
            return self._decode(photo), read_ground(photo, gsd_m=gsd_m, height_m=height_m), None
        if not isinstance(photo, str | PathLike):
            raise TypeError(
                "A photograph must be a path, bytes, a PIL image or an RGB array of shape (H, W, 3) and dtype uint8; "
                f"got {type(photo).__name__}."
            )
        return self._read_file(Path(photo), gsd_m, height_m)

    def _read_file(self, path: Path, gsd_m: float | None, height_m: float | None) -> tuple[Image, Ground, Path]:
        data = read_bytes(path)
        if problems := group_channels([path])[1]:
            raise errors.UnsupportedImageError(f"{problems[0]} Pass an RGB array of all channels.")
        try:
            return self._decode(data), read_ground(data, gsd_m=gsd_m, height_m=height_m), path
        except errors.ImageError as error:
            raise type(error)(f"{path}: {error}") from error

    def _decode(self, data: bytes) -> Image:
        return decode_image(data, max_pixels=self._max_pixels)

    def __repr__(self) -> str:
        """Return the id, the profile and the runtime."""
        return f"<Model {self.model_id}, profile {self.profile}, {self.info.framework}>"


def load(
    model: str | PathLike[str] | None = None,
    *,
    profile: str | None = None,
    runtime: str | None = None,
    settings: Settings | None = None,
) -> Model:
    """Load a model bundle and verify it.

    Args:
        model: Folder of the bundle; default: the model of the settings, `nnUNet_results/champion`.
        profile: Profile, for example `fast` or `exact`; default: that of the settings or of the bundle.
        runtime: `openvino`, `onnxruntime` or `auto`; default: that of the settings.
        settings: Settings; default: read from the environment and `.env`.

    Raises:
        BundleError: If there is no bundle in the folder, or it cannot be verified.
        ConfigurationError: If a setting is invalid, the bundle has no such profile, or there is no such runtime.
        ModelError: If the runtime cannot run the network.
    """
    chosen = settings or load_settings()
    segmenter = load_segmenter(
        chosen, model=Path(model).expanduser() if model else None, profile=profile, runtime=_runtime(runtime)
    )
    return Model(segmenter, max_pixels=chosen.max_pixels)


def _runtime(name: str | None) -> RuntimeName | None:
    try:
        return RuntimeName(name) if name else None
    except ValueError as error:
        known = ", ".join(RuntimeName)
        raise errors.ConfigurationError(f"There is no runtime {name!r}. Choose one of {known}.") from error
