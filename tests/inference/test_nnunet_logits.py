"""nnU-Net's own answer from the logits of its folds and classes."""

from pathlib import Path

import numpy as np
import onnx
import pytest

from droneseg.core.errors import ModelError
from droneseg.core.files import file_sha256
from droneseg.core.runtimes import RUNTIMES, RuntimeName
from droneseg.inference.nnunet_logits import classify, combine, mean_of_folds, sum_classes
from droneseg.inference.runtimes import Network, start_runtime
from droneseg.inference.runtimes.base import softmax
from droneseg.model.bundle import NnunetLogits
from droneseg.training.class_folding import fold_outputs
from support.bundles import write_network


def test_folds_are_averaged_in_float16_step_by_step() -> None:
    logits = np.array([2048, 1, 1, 3], np.float16).reshape(4, 1, 1)
    # 2048 + 1 and 2048 + 3 are no float16 numbers: 2048 + 1 is rounded to 2048
    assert mean_of_folds(logits[:3], 3).ravel().tolist() == [float(np.float16(2048) / np.float16(3))]
    assert mean_of_folds(logits, 2).ravel().tolist() == [1024.0, 2.0]
    assert mean_of_folds(logits.astype(np.float32), 2).ravel().tolist() == [1024.5, 2.0]


def test_probabilities_of_folded_classes_are_summed() -> None:
    logits = np.random.default_rng(1).normal(0, 30, (5, 7, 9)).astype(np.float32)
    before, after = softmax(logits), softmax(sum_classes(logits, (0, 1, 2, 1, 2)))
    assert np.allclose(after, [before[0], before[1] + before[3], before[2] + before[4]], atol=1e-6)


def test_nnunets_choice_is_kept_where_the_largest_sum_is_another() -> None:
    logits = np.log(np.array([0.4, 0.3, 0.3], np.float32)).reshape(3, 1, 1)
    ids, probabilities = classify(logits, NnunetLogits(folds=1, class_ids=(0, 1, 1)))
    assert ids.item() == 0
    assert probabilities.item() == pytest.approx(0.4)
    assert combine(logits, NnunetLogits(folds=1, class_ids=(0, 1, 1)))[:, 0, 0].argmax() == 1


def test_logits_that_are_not_finite_are_refused() -> None:
    logits = np.full((3, 1, 1), np.nan, np.float32)
    with pytest.raises(ModelError, match="non-finite"):
        classify(logits, NnunetLogits(folds=1, class_ids=(0, 1, 1)))


@pytest.mark.parametrize("name", RUNTIMES)
def test_runtimes_give_the_output_that_is_asked_for(tmp_path: Path, name: RuntimeName) -> None:
    file = tmp_path / "network.onnx"
    write_network(file)
    class_ids = (0, 1, 1, 2, 1, 2)
    before = run(file, name, None)
    fold_outputs(file, class_ids, keep_classes=True)
    assert [output.name for output in onnx.load(file).graph.output] == ["logits", "nnunet_logits"]
    assert np.allclose(run(file, name, "nnunet_logits"), before, atol=1e-5)
    expected = combine(before, NnunetLogits(folds=1, class_ids=class_ids))
    assert np.allclose(run(file, name, None), expected, atol=1e-5)
    write_network(file)
    fold_outputs(file, class_ids, keep_classes=False)
    assert [output.name for output in onnx.load(file).graph.output] == ["logits"]


def run(file: Path, name: RuntimeName, output: str | None) -> np.ndarray:
    """Return the logits of a tile by one output of a network."""
    network = Network(file, file_sha256(file), (16, 24), "f32", True, True, None, output)
    tile = np.random.default_rng(2).integers(0, 256, (1, 16, 24, 3), dtype=np.uint8)
    return start_runtime(name, network).logits(tile)[0]
