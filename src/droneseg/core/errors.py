"""Exception hierarchy.

The tree:

DronesegError
├── ImageError               a photograph cannot be used
│   ├── UnsupportedImageError    not one of the accepted formats or pixel types
│   ├── ImageTooLargeError       more pixels or bytes than the limit
│   └── BrokenImageError         truncated or corrupt data
├── MaskError                a mask cannot be used
│   ├── UnknownColoursError      colours that are in no class
│   └── InvalidIdsError          ids that are in no class
├── ShapeMismatchError       two arrays that belong together differ in shape
├── DatasetError             a dataset folder has problems; carries all of them
├── DownloadError            a dataset cannot be downloaded
├── SplitError               a split file is wrong or does not fit the data
├── OutputExistsError        something is in the way and was not touched
├── ConfigurationError       a setting, preset or override is wrong
├── MissingDependencyError   an optional package is not installed
├── TrainingError            a training cannot start, go on or finish
├── ModelError               a model cannot be found, loaded or run
│   ├── BundleError              a bundle does not verify
│   ├── StoreError               the place where models are kept does not give it
│   ├── PromotionRefusedError    a candidate may not become the champion
│   └── UntrustedCheckpointError a checkpoint would run code when loaded
├── DriftError               there is nothing to tell drift by
├── RecordsError             the records of a service cannot be read, or its reports written
├── RequestError             what a service was sent cannot be used
│   ├── UnauthorizedError        no API key, or a wrong one
│   ├── MalformedRequestError    not what its headers say, or cut off
│   ├── WrongContentTypeError    another kind of body than the endpoint takes
│   ├── MissingInputError        the body lacks what is needed, or has too much of it
│   ├── RequestTooLargeError     more bytes than the limit
│   ├── TooManyFilesError        more files than the limit
│   └── SlowRequestError         it was not sent in time
└── ServiceError             a service cannot answer now
    ├── NotReadyError            there is no verified model
    ├── ModelRefusedError        a new model does not verify, so the old one goes on
    ├── QueueFullError           there is more work than can be done in time
    └── TooLateError             it would not be done in time

A message says what is wrong, with the value, and what to do about it.
"""

from collections.abc import Sequence


class DronesegError(Exception):
    """Base of every failure this package expects and explains."""


class ImageError(DronesegError):
    """A photograph cannot be used."""


class UnsupportedImageError(ImageError):
    """The data is not an image of an accepted format or pixel type."""


class ImageTooLargeError(ImageError):
    """The image exceeds a size limit; found out before it is decoded."""


class BrokenImageError(ImageError):
    """The image data is truncated or corrupt."""


class MaskError(DronesegError):
    """A mask cannot be used."""


class UnknownColoursError(MaskError):
    """A colour mask holds colours that belong to no class."""


class InvalidIdsError(MaskError):
    """A mask of class ids holds values that belong to no class."""


class ShapeMismatchError(DronesegError):
    """Two arrays that belong together differ in shape."""


class DatasetError(DronesegError):
    """A dataset folder has problems; the message lists all of them.

    Attributes:
        problems: One line per problem.
    """

    def __init__(self, headline: str, problems: Sequence[str] = ()) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join([headline, *(f"  - {problem}" for problem in self.problems)]))


class DownloadError(DronesegError):
    """A dataset cannot be downloaded."""


class SplitError(DronesegError):
    """A split file is malformed or names images that are not there."""


class OutputExistsError(DronesegError):
    """The output is already there and was left untouched."""


class ConfigurationError(DronesegError):
    """A setting, preset or override is wrong."""


class TrainingError(DronesegError):
    """A training cannot start, go on or finish."""


class ModelError(DronesegError):
    """A model cannot be found, loaded or run."""


class BundleError(ModelError):
    """A model bundle is incomplete, damaged, too new or made for other classes."""


class OtherClassesError(BundleError):
    """A model bundle was made for another class table.

    Args:
        message: Both tables.
        model_id: Of the bundle.
    """

    def __init__(self, message: str, model_id: str) -> None:
        super().__init__(message)
        self.model_id = model_id


class StoreError(ModelError):
    """The place where models are kept cannot be reached, or does not have the model."""


class PromotionRefusedError(ModelError):
    """A candidate may not become the champion; the message lists all reasons."""


class UntrustedCheckpointError(ModelError):
    """A checkpoint holds pickled objects beyond numbers and text, which could run code when loaded."""


class MissingDependencyError(DronesegError):
    """An optional package is not installed.

    Args:
        package: The package that could not be imported.
        extra: The extra of droneseg that brings it.
    """

    def __init__(self, package: str, extra: str) -> None:
        super().__init__(
            f"{package} is not installed. In the clone: uv sync --extra {extra}, or pip install '.[{extra}]'"
        )


class DriftError(DronesegError):
    """There is too little to tell drift by: records, or what to hold them against."""


class RecordsError(DronesegError):
    """The place where a service keeps its records cannot be read, or that of its reports not written."""


class RequestError(DronesegError):
    """What a service was sent cannot be used."""


class UnauthorizedError(RequestError):
    """The request has no API key, or a wrong one."""


class MalformedRequestError(RequestError):
    """The body is not what its headers say, or was cut off."""


class WrongContentTypeError(RequestError):
    """The body is of another kind than the endpoint takes."""


class MissingInputError(RequestError):
    """The body lacks what the endpoint needs, or has more of it than it takes."""


class RequestTooLargeError(RequestError):
    """The body has more bytes than the limit."""


class TooManyFilesError(RequestError):
    """The body has more files than the limit."""


class SlowRequestError(RequestError):
    """The body did not arrive in time."""


class ServiceError(DronesegError):
    """A service cannot answer now."""


class NotReadyError(ServiceError):
    """There is no verified model."""


class ModelRefusedError(ServiceError):
    """A new model does not verify, so the old one goes on."""


class QueueFullError(ServiceError):
    """There is more work waiting than can be done in time.

    Attributes:
        retry_after_s: When there should be room again.
    """

    def __init__(self, message: str, retry_after_s: float) -> None:
        self.retry_after_s = retry_after_s
        super().__init__(message)


class TooLateError(ServiceError):
    """The answer would not have been there in time, so it was not computed."""
