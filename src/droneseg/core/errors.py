"""Every expected failure.

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
├── SplitError               a split file is wrong or does not fit the data
├── OutputExistsError        something is in the way and was not touched
├── ConfigurationError       a setting, preset or override is wrong
├── MissingDependencyError   an optional package is not installed
├── TrainingError            a training cannot start, go on or finish
└── ModelError               a model cannot be found, loaded or run
    ├── BundleError              a bundle does not verify
    └── UntrustedCheckpointError a checkpoint would run code when loaded

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


class UntrustedCheckpointError(ModelError):
    """A checkpoint holds pickled objects beyond numbers and text, which could run code when loaded."""


class MissingDependencyError(DronesegError):
    """An optional package is not installed.

    Args:
        package: The package that could not be imported.
        extra: The extra of droneseg that brings it.
    """

    def __init__(self, package: str, extra: str) -> None:
        super().__init__(f"{package} is not installed. Install it with: pip install 'droneseg[{extra}]'")
