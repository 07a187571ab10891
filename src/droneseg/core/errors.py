"""Exception hierarchy of the package.

DronesegError
├── ImageError               an image cannot be used
│   ├── UnsupportedImageError    unsupported format or pixel type
│   ├── ImageTooLargeError       image exceeds a size limit
│   └── BrokenImageError         truncated or corrupt image data
├── MaskError                a mask cannot be used
│   ├── UnknownColoursError      mask contains colours of no class
│   └── InvalidIdsError          mask contains ids of no class
├── ShapeMismatchError       image and mask, or two masks, differ in shape
├── DatasetError             a dataset folder has problems; lists all of them
├── DownloadError            a dataset cannot be downloaded
├── SplitError               a split file is invalid or does not match the dataset
├── OutputExistsError        the output path is already in use
├── ConfigurationError       invalid setting, preset or override
│   └── LandingRoleError         a class table has no class to land on
│       └── LandingClassError    the class that is asked for is not one to land on
├── MissingDependencyError   an optional package is not installed
├── TrainingError            training cannot start, resume or finish
├── ModelError               a model cannot be found, loaded or run
│   ├── BundleError              a bundle is incomplete, corrupt or incompatible
│   ├── StoreError               the model store is unreachable or lacks the model
│   ├── PromotionRefusedError    a candidate does not meet the promotion rule
│   └── UntrustedCheckpointError loading a checkpoint could execute code
├── DriftError               too few records, or no reference, for the drift test
├── RecordsError             prediction records or drift reports cannot be read or written
├── RequestError             invalid request to a service
│   ├── UnauthorizedError        API key missing or wrong
│   ├── MalformedRequestError    body truncated or inconsistent with its headers
│   ├── WrongContentTypeError    unsupported content type
│   ├── MissingInputError        required input missing, or unexpected input present
│   ├── RequestTooLargeError     body exceeds the size limit
│   ├── TooManyFilesError        body exceeds the limit on files
│   └── SlowRequestError         body did not arrive in time
└── ServiceError             the service cannot process the request now
    ├── NotReadyError            no verified model is loaded
    ├── ModelRefusedError        a new model failed verification; the current one stays active
    ├── QueueFullError           more work is queued than can be done in time
    └── TooLateError             the request timed out in the queue

Each message states the problem, the offending value and a remedy.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager


class DronesegError(Exception):
    """Base class of all errors that this package raises on purpose."""


class ImageError(DronesegError):
    """An image cannot be used."""


class UnsupportedImageError(ImageError):
    """The data is not an image of a supported format or pixel type."""


class ImageTooLargeError(ImageError):
    """The image exceeds a size limit; raised before it is decoded."""


class BrokenImageError(ImageError):
    """The image data is truncated or corrupt."""


class MaskError(DronesegError):
    """A mask cannot be used."""


class UnknownColoursError(MaskError):
    """A colour mask contains colours that belong to no class."""


class InvalidIdsError(MaskError):
    """An id mask contains values that are not class ids."""


class ShapeMismatchError(DronesegError):
    """An image and its mask, or two masks of one image, differ in shape."""


class DatasetError(DronesegError):
    """A dataset folder has problems; the message lists all of them.

    Attributes:
        problems: The problems, one line each.
    """

    def __init__(self, headline: str, problems: Sequence[str] = ()) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join([headline, *(f"  - {problem}" for problem in self.problems)]))


class DownloadError(DronesegError):
    """A dataset cannot be downloaded."""


class SplitError(DronesegError):
    """A split file is malformed or names images that do not exist."""


class OutputExistsError(DronesegError):
    """The output path is already in use; nothing was changed."""


class ConfigurationError(DronesegError):
    """A setting, preset or override is invalid."""


class LandingRoleError(ConfigurationError):
    """A class table has no class to land on."""


class LandingClassError(LandingRoleError):
    """None of the classes that may be landed on has the given name."""


class TrainingError(DronesegError):
    """Training cannot start, resume or finish."""


class ModelError(DronesegError):
    """A model cannot be found, loaded or run."""


class BundleError(ModelError):
    """A model bundle is incomplete, corrupt or too new."""


class StoreError(ModelError):
    """The model store cannot be reached, or does not contain the model."""


class PromotionRefusedError(ModelError):
    """A candidate does not meet the promotion rule; the message lists all reasons."""


class UntrustedCheckpointError(ModelError):
    """A checkpoint contains pickled objects other than numbers and text; loading them could execute code."""


class MissingDependencyError(DronesegError):
    """An optional package is not installed.

    Args:
        package: Name of the package that could not be imported.
        extra: Extra of droneseg that installs the package.
    """

    def __init__(self, package: str, extra: str) -> None:
        super().__init__(
            f"{package} is not installed. In the clone: uv sync --extra {extra}, or pip install '.[{extra}]'"
        )


@contextmanager
def optional_import(package: str, extra: str) -> Iterator[None]:
    """Raise `MissingDependencyError` if an import in the block fails.

    Args:
        package: Name of the package that the block imports.
        extra: Extra of droneseg that installs the package.
    """
    try:
        yield
    except ImportError as error:
        raise MissingDependencyError(package, extra) from error


class DriftError(DronesegError):
    """There are too few prediction records for the drift test, or the model has no reference."""


class RecordsError(DronesegError):
    """Prediction records cannot be read, or a drift report cannot be written."""


class RequestError(DronesegError):
    """A request to the service is invalid."""


class UnauthorizedError(RequestError):
    """The request has no API key or a wrong one."""


class MalformedRequestError(RequestError):
    """The body is truncated or does not match its headers."""


class WrongContentTypeError(RequestError):
    """The endpoint does not support the body's content type."""


class MissingInputError(RequestError):
    """The body lacks a required input or contains an unexpected one."""


class RequestTooLargeError(RequestError):
    """The body exceeds the size limit."""


class TooManyFilesError(RequestError):
    """The body contains more files than allowed."""


class SlowRequestError(RequestError):
    """The body did not arrive in time."""


class ServiceError(DronesegError):
    """The service cannot process the request at the moment."""


class NotReadyError(ServiceError):
    """No verified model is loaded."""


class ModelRefusedError(ServiceError):
    """A new model failed verification; the current model stays active."""


class QueueFullError(ServiceError):
    """More work is queued than the service can finish in time.

    Attributes:
        retry_after_s: Seconds until the queue is expected to have room.
    """

    def __init__(self, message: str, retry_after_s: float) -> None:
        self.retry_after_s = retry_after_s
        super().__init__(message)


class TooLateError(ServiceError):
    """The request timed out in the queue and was not processed."""
