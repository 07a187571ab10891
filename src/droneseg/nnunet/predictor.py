"""nnU-Net's own predictor, the reference for parity and speed."""

from pathlib import Path

import numpy as np
import torch

from droneseg.core.masks import Mask
from droneseg.nnunet.paths import FINAL_CHECKPOINT, NnunetPaths, checkpoint_files, export_environment
from droneseg.nnunet.preprocess import redirect_stdout_to_log


class NnunetPredictor:
    """nnU-Net's `nnUNetPredictor` on a CPU, with nnU-Net's own image reader.

    Args:
        folder: Model folder; its checkpoints are unpickled without checks, so they must be trusted.
        paths: nnU-Net's folders.
        mirrored: Whether to average over mirrored inputs, which is nnU-Net's default.
        checkpoint: File name of the checkpoint in each fold; all folds that have it are averaged.

    Raises:
        ModelError: If the folder is not a model folder or no fold has the checkpoint.
    """

    def __init__(self, folder: Path, paths: NnunetPaths, *, mirrored: bool, checkpoint: str = FINAL_CHECKPOINT) -> None:
        checkpoint_files(folder, checkpoint)
        export_environment(paths)
        from nnunetv2.imageio.natural_image_reader_writer import NaturalImage2DIO
        from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

        self._reader = NaturalImage2DIO()
        with redirect_stdout_to_log():
            self._predictor = nnUNetPredictor(
                use_mirroring=mirrored, device=torch.device("cpu"), allow_tqdm=False, perform_everything_on_device=True
            )
            self._predictor.initialize_from_trained_model_folder(str(folder), None, checkpoint_name=checkpoint)

    def segment_file(self, image: Path) -> Mask:
        """Return the class ids of an RGB PNG file, shape (H, W), dtype uint8."""
        with redirect_stdout_to_log():
            values, properties = self._reader.read_images([str(image)])
            mask = self._predictor.predict_single_npy_array(values, properties)
        return np.ascontiguousarray(mask[0], dtype=np.uint8)
