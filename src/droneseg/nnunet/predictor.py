"""nnU-Net's own predictor, the reference for parity and speed."""

from pathlib import Path
from typing import Self

import numpy as np
import torch

from droneseg.core.images import Image
from droneseg.core.masks import Mask
from droneseg.nnunet.checkpoint import TrainedModel
from droneseg.nnunet.paths import FINAL_CHECKPOINT, FoldName, NnunetPaths, checkpoint_files, export_environment
from droneseg.nnunet.preprocess import redirect_stdout_to_log


class NnunetPredictor:
    """nnU-Net's `nnUNetPredictor` on a CPU, with nnU-Net's own image reader.

    Args:
        folder: Model folder; its checkpoints are unpickled without checks, so they must be trusted.
        paths: nnU-Net's folders.
        mirrored: Whether to average over mirrored inputs, which is nnU-Net's default.
        checkpoint: File name of the checkpoint in each fold.
        folds: Folds to average; None averages all that have the checkpoint.

    Raises:
        ModelError: If the folder is not a model folder or no fold has the checkpoint.
    """

    def __init__(
        self,
        folder: Path,
        paths: NnunetPaths,
        *,
        mirrored: bool,
        checkpoint: str = FINAL_CHECKPOINT,
        folds: tuple[FoldName, ...] | None = None,
    ) -> None:
        checkpoint_files(folder, checkpoint)
        self._channel_order: tuple[int, int, int] = (0, 1, 2)
        self._spacing: tuple[float, float] = (1.0, 1.0)
        export_environment(paths)
        from nnunetv2.imageio.natural_image_reader_writer import NaturalImage2DIO
        from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

        self._reader = NaturalImage2DIO()
        with redirect_stdout_to_log():
            self._predictor = nnUNetPredictor(
                use_mirroring=mirrored, device=torch.device("cpu"), allow_tqdm=False, perform_everything_on_device=True
            )
            self._predictor.initialize_from_trained_model_folder(str(folder), folds, checkpoint_name=checkpoint)

    @classmethod
    def of_model(cls, model: TrainedModel, checkpoint: str) -> Self:
        """Return the predictor of a trained model, with mirroring.

        Args:
            model: Trained model; its checkpoints were loaded before, so they can be unpickled.
            checkpoint: File name of the checkpoint in each fold.
        """
        folder = model.folder
        predictor = cls(
            folder,
            NnunetPaths(folder, folder, folder),
            mirrored=True,
            checkpoint=checkpoint,
            folds=tuple(fold.name for fold in model.folds),
        )
        predictor._channel_order = model.channel_order
        predictor._spacing = model.plan.spacing
        return predictor

    def segment(self, image: Image) -> Mask:
        """Return the class ids of an RGB image, shape (H, W), dtype uint8, in nnU-Net's spacing."""
        channels = [image[..., index] for index in self._channel_order]
        values = np.stack(channels)[:, None].astype(np.float32)
        with redirect_stdout_to_log():
            mask = self._predictor.predict_single_npy_array(values, {"spacing": (999, *self._spacing)})
        return np.ascontiguousarray(mask[0], dtype=np.uint8)

    def segment_file(self, image: Path) -> Mask:
        """Return the class ids of an RGB PNG file, shape (H, W), dtype uint8."""
        with redirect_stdout_to_log():
            values, properties = self._reader.read_images([str(image)])
            mask = self._predictor.predict_single_npy_array(values, properties)
        return np.ascontiguousarray(mask[0], dtype=np.uint8)
