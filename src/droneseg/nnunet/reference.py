"""nnU-Net's own predictor behind the `Segmenter` seam: slow, and the yardstick for everything faster."""

import hashlib
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from enum import StrEnum
from pathlib import Path
from typing import Any

import numpy as np
import torch

from droneseg.core.errors import ModelError
from droneseg.core.images import Image
from droneseg.core.prediction import Prediction, class_fractions
from droneseg.nnunet.devices import DeviceChoice, choose_device, cpu_has_bf16
from droneseg.nnunet.layout import FINAL_CHECKPOINT, Layout, announce, model_id_of
from droneseg.nnunet.output import prints_as_logs


class Profile(StrEnum):
    """The trade between speed and fidelity.

    `exact` is nnU-Net's own answer: float32, mirrored along both axes. `fast` is one pass, in bfloat16 where the CPU
    computes it in hardware.
    """

    EXACT = "exact"
    FAST = "fast"


class ReferenceSegmenter:
    """Predicts with nnU-Net's predictor. One at a time: nnU-Net's predictor is not thread-safe.

    Args:
        folder: A model folder of nnU-Net: it holds plans.json and the folds.
        layout: nnU-Net's folders.
        checkpoint: File name of the checkpoint in each fold; every fold that has it takes part.
        profile: The trade between speed and fidelity.
        device: Where to compute.

    Raises:
        ModelError: If the folder holds no such model.
    """

    def __init__(
        self,
        folder: Path,
        layout: Layout,
        *,
        checkpoint: str = FINAL_CHECKPOINT,
        profile: Profile = Profile.EXACT,
        device: DeviceChoice = "auto",
    ) -> None:
        files = _checkpoint_files(folder, checkpoint)
        announce(layout)
        from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

        chosen = choose_device(device)
        self._profile = profile
        self._bf16 = profile is Profile.FAST and chosen.type == "cpu" and cpu_has_bf16()
        digest = hashlib.sha256()
        for file in files:
            digest.update(file.read_bytes())
        self._model_id = model_id_of(digest.hexdigest())
        with prints_as_logs():
            self._predictor = nnUNetPredictor(
                use_mirroring=profile is Profile.EXACT,
                device=chosen,
                allow_tqdm=False,
                perform_everything_on_device=True,
            )
            try:
                self._predictor.initialize_from_trained_model_folder(str(folder), None, checkpoint_name=checkpoint)
            except (RuntimeError, KeyError, ValueError, OSError, EOFError) as error:
                raise ModelError(f"{folder}: cannot load {checkpoint}: {error}") from error

    @property
    def model_id(self) -> str:
        """Short hash of the checkpoints."""
        return self._model_id

    @property
    def profile(self) -> str:
        """Name of the profile."""
        return self._profile.value

    def segment(self, image: Image) -> Prediction:
        """Predict the class of every pixel of an RGB image, shape (H, W, 3), dtype uint8."""
        from nnunetv2.inference.export_prediction import (
            convert_predicted_logits_to_segmentation_with_correct_shape,
        )

        predictor = self._predictor
        marks = [time.perf_counter()]
        with prints_as_logs(), self._precision():
            case = self._preprocess(image)
            marks.append(time.perf_counter())
            logits = predictor.predict_logits_from_preprocessed_data(case["data"]).cpu().float()
            marks.append(time.perf_counter())
            mask, probabilities = convert_predicted_logits_to_segmentation_with_correct_shape(
                logits,
                predictor.plans_manager,
                predictor.configuration_manager,
                predictor.label_manager,
                case["data_properties"],
                return_probabilities=True,
            )
        marks.append(time.perf_counter())
        ids = np.ascontiguousarray(mask[0], dtype=np.uint8)
        return Prediction(
            mask=ids,
            class_fractions=class_fractions(ids),
            confidence=float(probabilities.max(axis=0).mean()),
            timings_s=dict(
                zip(("preprocess", "network", "postprocess"), np.diff(marks).round(4).tolist(), strict=True)
            ),
            model_id=self._model_id,
        )

    def _preprocess(self, image: Image) -> dict[str, Any]:
        from nnunetv2.inference.data_iterators import PreprocessAdapterFromNpy

        # (C, 1, H, W) float32 with this spacing is what nnU-Net's reader of natural images gives
        array = image.transpose(2, 0, 1)[:, None].astype(np.float32)
        adapter = PreprocessAdapterFromNpy(
            [array],
            [None],
            [{"spacing": (999, 1, 1)}],
            [None],
            self._predictor.plans_manager,
            self._predictor.dataset_json,
            self._predictor.configuration_manager,
            num_threads_in_multithreaded=1,
            verbose=False,
        )
        case: dict[str, Any] = next(adapter)
        return case

    def _precision(self) -> AbstractContextManager[Any]:
        return torch.autocast("cpu", dtype=torch.bfloat16) if self._bf16 else nullcontext()


def _checkpoint_files(folder: Path, checkpoint: str) -> Sequence[Path]:
    """Return the checkpoint of every fold that has it, or say what is missing."""
    if not folder.is_dir():
        raise ModelError(f"No model at {folder}: no such folder.")
    missing = [name for name in ("plans.json", "dataset.json") if not (folder / name).is_file()]
    if missing:
        raise ModelError(f"{folder} is no model folder of nnU-Net: {' and '.join(missing)} missing.")
    files = sorted(folder.glob(f"fold_*/{checkpoint}"))
    if not files:
        others = sorted({file.name for file in folder.glob("fold_*/checkpoint_*.pth")})
        hint = f" There is {', '.join(others)}: pass it with --checkpoint." if others else ""
        raise ModelError(f"{folder}: no fold holds {checkpoint}.{hint}")
    return files
