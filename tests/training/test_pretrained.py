"""Pretrained networks: training, nnU-Net's own predictor and export."""

import json

import numpy as np
import pytest

from droneseg.core.images import read_image
from droneseg.inference.segmenter import BundleSegmenter
from droneseg.model.bundle import read_bundle
from droneseg.nnunet.paths import NnunetPaths
from support.workspace import TINY_CROPS, Workspace

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def pretrained(workspace: Workspace) -> Workspace:
    workspace.run("train", "preset=pretrained", *TINY_CROPS, "deep_supervision=true")
    model = str(workspace.fold("2d_lite0").parent)
    workspace.run("export", "--from", model, "--out", "lite0", "--images", "4", "--license", "none")
    return workspace


def test_training_starts_from_the_imagenet_weights(pretrained: Workspace) -> None:
    import torch

    from droneseg.nnunet.networks import EfficientNetLite

    file = pretrained.fold("2d_lite0") / "checkpoint_final.pth"
    trained = torch.load(file, map_location="cpu", weights_only=False)["network_weights"]
    fresh, imagenet = EfficientNetLite("efficientnet-lite0"), EfficientNetLite("efficientnet-lite0")
    imagenet.load_pretrained()
    name = "stages.3.0.layers.0.weight"
    learned = trained[f"encoder.{name}"]
    # two small steps away from the ImageNet weights, and far from random ones
    assert (learned - imagenet.state_dict()[name]).abs().max() < 0.02
    assert (learned - fresh.state_dict()[name]).abs().max() > 0.1


def test_nnunet_predictor_returns_the_same_masks(pretrained: Workspace) -> None:
    from droneseg.nnunet.predictor import NnunetPredictor

    root = pretrained.root
    paths = NnunetPaths(root / "nnUNet_raw", root / "nnUNet_preprocessed", root / "nnUNet_results")
    predictor = NnunetPredictor(pretrained.fold("2d_lite0").parent, paths, mirrored=True)
    bundle = read_bundle(root / "lite0")
    assert bundle.manifest.divisor == (64, 64)
    segmenter = BundleSegmenter(bundle, profile="exact")
    stem = json.loads((root / "split.json").read_text())["test"][0]
    image = root / f"data/classes_dataset/classes_dataset/original_images/{stem}.png"
    mask = segmenter.segment(read_image(image)).mask
    assert np.mean(mask == predictor.segment_file(image)) > 0.995
