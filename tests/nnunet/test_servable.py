"""Stock models of nnU-Net: the bundle predicts as nnU-Net's own predictor does, or the export refuses the model."""

import json
import pickle
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from droneseg.core.class_files import CLASSES_NAME, MaskColours, write_classes
from droneseg.core.class_map import NamePairs
from droneseg.core.classes import DEFAULT_CLASSES, ClassTable
from droneseg.core.errors import ConfigurationError
from droneseg.core.masks import Mask, encode_grey_ids
from droneseg.data.synthetic import generate_scene
from droneseg.model.bundle import NOT_MEASURED, Bundle, NnunetLogits
from droneseg.nnunet.paths import BEST_CHECKPOINT, FINAL_CHECKPOINT, FoldName, NnunetPaths
from droneseg.nnunet.servable import problems_of
from support import stock

pytestmark = pytest.mark.slow

PHOTOGRAPHS = [np.ascontiguousarray(generate_scene(77 + number, 151, 130)[0]) for number in range(2)]
"""Photographs of several tiles, whose sides are no multiples of anything."""
BGR = (2, 1, 0)


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> NnunetPaths:
    """A raw and preprocessed dataset with nnU-Net's plans."""
    return stock.prepare(tmp_path_factory.mktemp("stock"))


@pytest.fixture(scope="module")
def plain(paths: NnunetPaths) -> Path:
    """A model of nnU-Net's own trainer, with folds 0, 1 and all."""
    return stock.train(paths, stock.tiny_plans(paths), "plain", folds=(0, 1, "all"))


def export(
    model: Path,
    paths: NnunetPaths,
    out: Path,
    *,
    folds: tuple[FoldName, ...] = (0,),
    checkpoint: str = FINAL_CHECKPOINT,
    classes: ClassTable | None = None,
    mapping: NamePairs = (),
    apply_postprocessing: bool = True,
    int8: bool = False,
) -> Bundle:
    from droneseg.flows.export import export_model

    return export_model(
        model, paths, out, checkpoint=checkpoint, folds=folds, classes=classes, mapping=mapping, licence="none",
        apply_postprocessing=apply_postprocessing, int8=int8, images=2, on_step=lambda _: None,
    )  # fmt: skip


def nnunet_masks(
    model: Path, paths: NnunetPaths, folder: Path, *, order: tuple[int, ...] | None = None, **options: Any
) -> list[Mask]:
    """Return the masks of the photographs by nnU-Net's own predictor, from files."""
    for number, photograph in enumerate(PHOTOGRAPHS):
        stock.write_image(folder / "photographs", f"photo{number}", photograph, order=order)
    return stock.predict(model, paths, folder / "photographs", **options)


def agreement(bundle: Bundle, masks: list[Mask]) -> float:
    """Return the share of the pixels of the photographs to which the profile `exact` gives the same class."""
    from droneseg.inference.segmenter import BundleSegmenter

    segmenter = BundleSegmenter(bundle, profile="exact")
    found = [segmenter.segment(photograph).mask for photograph in PHOTOGRAPHS]
    assert all(len(np.unique(mask)) > 1 for mask in masks), "a mask of one class shows nothing"
    return float(np.mean([ours == theirs for ours, theirs in zip(found, masks, strict=True)]))


def refusal(model: Path, paths: NnunetPaths, out: Path, **options: Any) -> str:
    """Return the message of the refused export, which writes nothing."""
    with pytest.raises(ConfigurationError) as error:
        export(model, paths, out, **options)
    assert not out.exists()
    return str(error.value)


@pytest.mark.parametrize("folds", [(0,), (0, 1), ("all",)], ids=["plain", "two folds", "all"])
def test_folds_predict_as_nnunet(plain: Path, paths: NnunetPaths, tmp_path: Path, folds: tuple[FoldName, ...]) -> None:
    bundle = export(plain, paths, tmp_path / "bundle", folds=folds)
    assert agreement(bundle, nnunet_masks(plain, paths, tmp_path, folds=folds)) >= 0.9999
    manifest = bundle.manifest
    assert manifest.class_table.names == stock.CLASSES
    assert {entry.role for entry in manifest.classes} == {None}
    assert manifest.quality is not None
    if folds == (0,):
        assert (manifest.quality["data"], manifest.quality["images"]) == ("validation part of fold 0", 2)
        assert manifest.profiles["exact"].nnunet_logits is None
    else:
        assert manifest.quality == {"data": NOT_MEASURED}


@pytest.mark.parametrize(
    ("kind", "plans", "changes"),
    [
        ("residual", "nnUNetResEncUNetMPlans", {}),
        ("zscore", "nnUNetPlans", {"normalization_schemes": ["ZScoreNormalization"] * 3}),
    ],
)
def test_plans_predict_as_nnunet(
    paths: NnunetPaths, tmp_path: Path, kind: str, plans: str, changes: Mapping[str, object]
) -> None:
    model = stock.train(paths, stock.tiny_plans(paths, plans, **changes), kind)
    bundle = export(model, paths, tmp_path / "bundle")
    assert agreement(bundle, nnunet_masks(model, paths, tmp_path)) >= 0.9999


def test_ignore_label_predicts_as_nnunet(paths: NnunetPaths, tmp_path: Path) -> None:
    description = stock.describe(labels=stock.LABELS | {"ignore": len(stock.LABELS)})
    model = stock.train(paths, stock.tiny_plans(paths), "ignore", description=description)
    bundle = export(model, paths, tmp_path / "bundle")
    assert bundle.manifest.class_table.names == stock.CLASSES
    assert agreement(bundle, nnunet_masks(model, paths, tmp_path)) >= 0.9999


def with_description(model: Path, folder: Path, **changes: object) -> Path:
    """Return a copy of a model with another dataset.json."""
    shutil.copytree(model, folder)
    (folder / "dataset.json").write_text(json.dumps(stock.describe(**changes)))
    return folder


def test_channels_in_files_of_their_own_have_the_order_of_their_names(
    plain: Path, paths: NnunetPaths, tmp_path: Path
) -> None:
    names = {"channel_names": {"0": "B", "1": "G", "2": "R"}}
    model = with_description(plain, tmp_path / "model", **names)
    raw = tmp_path / "raw"
    stock.write_raw(raw, stock.describe(**names), order=BGR)
    own = NnunetPaths(raw, paths.preprocessed, paths.results)
    bundle = export(model, own, tmp_path / "bundle")
    assert agreement(bundle, nnunet_masks(model, own, tmp_path, order=BGR)) >= 0.9999


def test_names_of_channels_do_not_change_rgb_files(plain: Path, paths: NnunetPaths, tmp_path: Path) -> None:
    names = {"channel_names": {"0": "B", "1": "G", "2": "R"}}
    model = with_description(plain, tmp_path / "model", **names)
    bundle = export(model, paths, tmp_path / "bundle")
    assert agreement(bundle, nnunet_masks(model, paths, tmp_path)) >= 0.9999
    elsewhere = NnunetPaths(tmp_path, tmp_path, tmp_path)
    assert "has the channels B, G, R" in refusal(model, elsewhere, tmp_path / "refused")


def test_regions_are_refused_by_name(paths: NnunetPaths, tmp_path: Path) -> None:
    labels = {"background": 0, "ground": [1, 2, 3], "vehicle": [4], "street": [5]}
    description = stock.describe(labels=labels, regions_class_order=[1, 2, 3])
    model = stock.train(paths, stock.tiny_plans(paths), "regions", description=description)
    assert "it predicts overlapping regions (ground, vehicle, street)" in refusal(model, paths, tmp_path / "bundle")


def test_all_reasons_are_listed_at_once(plain: Path, paths: NnunetPaths, tmp_path: Path) -> None:
    names = {str(number): name for number, name in enumerate(("R", "G", "B", "height"))}
    model = with_description(plain, tmp_path / "model", channel_names=names)
    fingerprint = model / "dataset_fingerprint.json"
    spacings = [[999, 0.05, 0.05], [999, 0.1, 0.1]]
    fingerprint.write_text(json.dumps({**json.loads(fingerprint.read_text()), "spacings": spacings}))
    message = refusal(model, paths, tmp_path / "bundle")
    assert "it has 4 channels (R, G, B, height), and a bundle takes RGB images" in message
    assert "nnU-Net resamples its images of the spacings 0.05x0.05, 0.1x0.1 to 1x1" in message


def test_best_checkpoint_predicts_as_nnunet(plain: Path, paths: NnunetPaths, tmp_path: Path) -> None:
    import torch

    model = Path(shutil.copytree(plain, tmp_path / "model"))
    final = model / "fold_0" / FINAL_CHECKPOINT
    content = torch.load(final, weights_only=False)
    content["network_weights"] = {name: 0 * value for name, value in content["network_weights"].items()}
    torch.save(content, final)
    bundle = export(model, paths, tmp_path / "bundle", checkpoint=BEST_CHECKPOINT)
    assert agreement(bundle, nnunet_masks(model, paths, tmp_path, checkpoint=BEST_CHECKPOINT)) >= 0.9999


@pytest.mark.parametrize("helps", [True, False])
def test_postprocessing_that_helps_is_refused_by_name(
    plain: Path, paths: NnunetPaths, tmp_path: Path, helps: bool
) -> None:
    model = Path(shutil.copytree(plain, tmp_path / "model"))
    determine_postprocessing(model, tmp_path / "truth", small_component_is_true=not helps)
    assert (model / "crossval_results_folds_0/postprocessing.pkl").is_file()
    if helps:
        message = refusal(model, paths, tmp_path / "bundle")
        assert "postprocessing (remove_all_but_largest_component_from_segmentation of roof) belongs to it" in message
        assert "--no-postprocessing" in message
    bundle = export(model, paths, tmp_path / "bundle", apply_postprocessing=not helps)
    assert bundle.manifest.profiles.keys() == {"exact", "fast"}


def test_postprocessing_is_read_without_loading_its_pickle_file(tmp_path: Path) -> None:
    def problems() -> list[str]:
        return problems_of(tmp_path, stock.describe(), {"patch_size": [64, 48]}, apply_postprocessing=True)

    file = tmp_path / "crossval_results_folds_0_1/postprocessing.pkl"
    file.parent.mkdir()
    file.write_bytes(pickle.dumps(([], [])))
    assert problems() == []
    file.write_bytes(pickle.dumps(([_Trap()], [{}])))
    assert "nnU-Net's postprocessing (postprocessing.pkl) belongs to it" in problems()[0]
    file.write_bytes(b"no pickle file")
    assert "(postprocessing.pkl)" in problems()[0]
    steps = ["remove_all_but_largest_component_from_segmentation"] * 3
    options = [{"labels_or_regions": value} for value in ([1, 2, 3, 4, 5], 2, 5)]
    described = {"postprocessing_fns": steps, "postprocessing_kwargs": options}
    file.with_suffix(".json").write_text(json.dumps(described))
    (found,) = problems()
    names = ("roof and lake and lawn and car and road", "lake", "road")
    assert f"postprocessing ({', '.join(f'{steps[0]} of {each}' for each in names)}) belongs to it" in found


class _Trap:
    """An object that is never loaded."""

    def __reduce__(self) -> tuple[Any, ...]:
        return pytest.fail, ("the pickle file was loaded",)


def determine_postprocessing(model: Path, truth: Path, *, small_component_is_true: bool) -> None:
    """Let nnU-Net decide whether to keep only the largest component, where a small one is right or wrong."""
    from nnunetv2.postprocessing.remove_connected_components import determine_postprocessing as determine

    mask = np.zeros((40, 50), np.uint8)
    mask[5:25, 5:25] = 1
    with_small = mask.copy()
    with_small[32:36, 40:46] = 1
    predictions = model / "crossval_results_folds_0"
    for folder, content in ((predictions, with_small), (truth, with_small if small_component_is_true else mask)):
        folder.mkdir()
        (folder / "case0.png").write_bytes(encode_grey_ids(content))
    description = stock.describe(labels={"background": 0, "roof": 1})
    with stock.threads_for_postprocessing():
        determine(str(predictions), str(truth), str(model / "plans.json"), description, num_processes=1)


MAPPING = (("roof", "obstacles"), ("lake", "obstacles"), ("lawn", "soft-surfaces"), ("car", "moving-objects"),
           ("road", "moving-objects"))  # fmt: skip

FOLDED = np.array([0, 1, 1, 2, 3, 3], np.uint8)
"""Class that each class becomes."""


@pytest.fixture(scope="module")
def folded(plain: Path, paths: NnunetPaths, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A bundle of two folds whose classes are folded to some of Kaggle's, with an INT8 network."""
    out = tmp_path_factory.mktemp("folded") / "bundle"
    return export(plain, paths, out, folds=(0, 1), mapping=MAPPING, int8=True)


def test_folded_classes_are_nnunets_own_answer_with_other_names(
    folded: Bundle, plain: Path, paths: NnunetPaths, tmp_path: Path
) -> None:
    masks = [FOLDED[mask] for mask in nnunet_masks(plain, paths, tmp_path, folds=(0, 1))]
    assert agreement(folded, masks) >= 0.9999
    assert folded.manifest.class_table.names == ("background", "obstacles", "soft-surfaces", "moving-objects")
    roles = [entry.role for entry in folded.manifest.classes]
    assert roles == [None, "obstacle", "soft", "moving"]
    assert folded.manifest.profiles["exact"].nnunet_logits == NnunetLogits(folds=2, class_ids=(0, 1, 1, 2, 3, 3))
    assert folded.manifest.provenance.agreement_with_torch["agreement_with_nnunet"] >= 0.999


def softmax(logits: np.ndarray) -> np.ndarray:
    exponentials = np.exp(logits.astype(np.float64))
    return exponentials / exponentials.sum(axis=1, keepdims=True)


def test_probabilities_of_folded_classes_are_summed_inside_the_graphs(folded: Bundle) -> None:
    import onnx
    import onnxruntime as ort

    patch = np.random.default_rng(0).random((1, 3, *stock.PATCH), dtype=np.float32)
    for profile in ("fast", "int8"):
        network = onnx.load(folded.network(profile))
        expected = ["logits", "nnunet_logits"] if profile == "fast" else ["logits"]
        assert [output.name for output in network.graph.output] == expected
        network.graph.output.append(onnx.ValueInfoProto(name="logits_of_classes"))
        session = ort.InferenceSession(network.SerializeToString(), providers=["CPUExecutionProvider"])
        logits, before = session.run(["logits", "logits_of_classes"], {"patch": patch})
        assert (logits.shape[1], before.shape[1]) == (4, 6)
        sums = [softmax(before)[:, number == FOLDED].sum(axis=1) for number in range(4)]
        assert np.abs(softmax(logits) - np.stack(sums, axis=1)).max() < 1e-5


def test_quality_of_folded_classes_is_that_of_the_folded_truth(plain: Path, paths: NnunetPaths, tmp_path: Path) -> None:
    from droneseg.inference.segmenter import BundleSegmenter

    bundle = export(plain, paths, tmp_path / "bundle", mapping=MAPPING)
    quality = bundle.manifest.quality
    assert quality is not None
    assert (quality["data"], quality["images"]) == ("validation part of fold 0", 2)
    segmenter = BundleSegmenter(bundle)
    scenes = [generate_scene(40 + number, *stock.SIZE) for number in (3, 4)]
    found = np.stack([segmenter.segment(image).mask for image, _ in scenes])
    truth = FOLDED[np.stack([mask for _, mask in scenes])]
    for number, name in enumerate(("obstacles", "soft-surfaces", "moving-objects"), start=1):
        union = ((found == number) | (truth == number)).sum()
        expected = ((found == number) & (truth == number)).sum() / union
        assert quality["per_class_iou"][name] == pytest.approx(expected, abs=1e-6), name


def test_roles_of_a_stock_dataset_come_from_its_class_table(plain: Path, paths: NnunetPaths, tmp_path: Path) -> None:
    from droneseg.flows.export import map_of
    from droneseg.nnunet.checkpoint import load_trained_model

    model = load_trained_model(plain, paths, checkpoint=FINAL_CHECKPOINT, folds=(0,))
    own = NnunetPaths(tmp_path, paths.preprocessed, paths.results, dataset=stock.DATASET)
    stock.write_raw(tmp_path, stock.describe())
    assert map_of(model, own).target == model.classes
    with_roles = named_classes()
    write_classes(own.raw_dataset / CLASSES_NAME, MaskColours(with_roles))
    assert map_of(model, own).target == with_roles
    write_classes(own.raw_dataset / CLASSES_NAME, MaskColours())
    with pytest.raises(ConfigurationError, match=r"classes\.csv does not match the labels in the model"):
        map_of(model, own)
    (own.raw_dataset / "dataset.json").write_text(json.dumps(stock.describe(labels={"background": 0, "roof": 1})))
    assert map_of(model, own).target == model.classes, "the dataset is another one"


def test_another_dataset_of_the_same_name_is_not_that_of_the_model(
    plain: Path, paths: NnunetPaths, tmp_path: Path
) -> None:
    from droneseg.flows.export import ModelCases, cases_of, map_of
    from droneseg.nnunet.checkpoint import load_trained_model

    model = load_trained_model(plain, paths, checkpoint=FINAL_CHECKPOINT, folds=(0,))
    class_map = map_of(model, paths)
    here = NnunetPaths(tmp_path / "raw", tmp_path / "preprocessed", paths.results, dataset=stock.DATASET)
    stock.write_raw(here.raw, stock.describe())
    for name in ("splits_final.json", "dataset_fingerprint.json"):
        here.preprocessed_dataset.mkdir(parents=True, exist_ok=True)
        shutil.copy(paths.preprocessed_dataset / name, here.preprocessed_dataset)
    held_out = [pair.stem for pair in cases_of(model, here, class_map).held_out]
    assert held_out == [pair.stem for pair in cases_of(model, paths, class_map).held_out] != []

    fingerprint = here.preprocessed_dataset / "dataset_fingerprint.json"
    content = json.loads(fingerprint.read_text())
    content["foreground_intensity_properties_per_channel"]["0"]["mean"] += 1
    fingerprint.write_text(json.dumps(content))
    assert cases_of(model, here, class_map) == ModelCases()
    fingerprint.unlink()
    assert cases_of(model, here, class_map).held_out
    description = here.raw_dataset / "dataset.json"
    description.write_text(json.dumps(stock.describe() | {"numTraining": 99}))
    assert cases_of(model, here, class_map) == ModelCases()


def named_classes() -> ClassTable:
    """Return the default classes with the names of the stock dataset."""
    names = zip(DEFAULT_CLASSES, stock.CLASSES, strict=True)
    return ClassTable(tuple(replace(entry, name=name) for entry, name in names))


def test_class_table_gives_a_stock_model_colours_and_roles(plain: Path, paths: NnunetPaths, tmp_path: Path) -> None:
    bundle = export(plain, paths, tmp_path / "bundle", classes=named_classes())
    assert bundle.manifest.class_table == named_classes()
    assert bundle.manifest.quality is not None
    assert "unsafe_landing_rate" in bundle.manifest.quality
    message = refusal(plain, paths, tmp_path / "refused", classes=DEFAULT_CLASSES)
    assert "roof is missing; its id is 1" in message
    assert "landing-zones is not a class of the model" in message
