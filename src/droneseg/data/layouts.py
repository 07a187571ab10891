"""How folders of photographs and masks are laid out. The one place to add a layout; what we write is Kaggle's."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Layout:
    """A folder of photographs beside a folder of colour masks, files of the same stem.

    Attributes:
        images: Folder of the photographs.
        masks: Folder of the masks.
        inside: Where the two are in what a user names, if not directly.
    """

    images: str
    masks: str
    inside: Path = Path()

    def images_in(self, root: Path) -> Path:
        """Return the folder of photographs of a dataset."""
        return root / self.images

    def masks_in(self, root: Path) -> Path:
        """Return the folder of masks of a dataset."""
        return root / self.masks

    def is_in(self, root: Path) -> bool:
        """Say whether both folders are there."""
        return self.images_in(root).is_dir() and self.masks_in(root).is_dir()

    def __str__(self) -> str:
        """Return the layout as a path with both names."""
        return (self.inside / f"{{{self.images},{self.masks}}}").as_posix()


KAGGLE_FOLDER = Path("classes_dataset/classes_dataset")
IMAGES_FOLDER = "original_images"
MASKS_FOLDER = "label_images_semantic"

KAGGLE = Layout(IMAGES_FOLDER, MASKS_FOLDER, KAGGLE_FOLDER)
LAYOUTS: tuple[Layout, ...] = (KAGGLE, Layout("images", "masks"))
