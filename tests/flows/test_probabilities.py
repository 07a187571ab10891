"""Maps are out of fold, resumable and complete, and a bundle is calibrated on them."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from droneseg.cli.main import app
from droneseg.core.classes import DEFAULT_CLASSES
from droneseg.core.errors import ConfigurationError, DatasetError, OutputExistsError
from droneseg.core.images import read_image
from droneseg.core.masks import read_mask
from droneseg.core.metrics import compute_metrics, confusion
from droneseg.data.dataset import IMAGES_FOLDER, KAGGLE_FOLDER, MASKS_FOLDER, list_pairs
from droneseg.data.image_matching import Match
from droneseg.flows.calibrate import calibrate_from_maps, fit_temperature
from droneseg.flows.map_plan import fold_tasks, plan_maps
from droneseg.flows.probabilities import (
    INDEX_NAME,
    FoldModel,
    MapOptions,
    MapResult,
    MapTask,
    ProbabilityIndex,
    group_places,
    make_maps,
    read_index,
    read_map,
    score_maps,
)
from droneseg.flows.upgrade import add_blocks
from droneseg.inference.segmenter import BundleSegmenter
from droneseg.inference.views import softmax
from droneseg.model.bundle import Bundle
from support.bundles import BIASES, TRAINED_AT, VIEWS, WEIGHTS, make_bundle, write_network
from support.projects import make_photographs

COUNT = 24
FOLDS = {0: tuple(f"{n:03d}" for n in range(12)), 1: tuple(f"{n:03d}" for n in range(12, COUNT))}
PATCH = (32, 48)


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_photographs(tmp_path_factory.mktemp("data") / "drone", COUNT)


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> list[Bundle]:
    """Two bundles; the second prefers landing zones."""
    folder = tmp_path_factory.mktemp("models")
    result = []
    for number, bias in enumerate((0.0, 2.0)):
        network = folder / f"{number}.onnx"
        write_network(network, WEIGHTS, (*BIASES[:5], BIASES[5] + bias))
        result.append(
            make_bundle(folder / f"bundle{number}", patch=PATCH, network=network, ground=TRAINED_AT, context=VIEWS)
        )
    return result


def models_of(bundles: Sequence[Bundle]) -> list[FoldModel]:
    return [
        FoldModel(number, lambda bundle=bundle: BundleSegmenter(bundle), bundle.model_id, DEFAULT_CLASSES)
        for number, bundle in enumerate(bundles)
    ]


def index_of(**changes: object) -> ProbabilityIndex:
    values = {"kind": "out of fold", "data": "drone", "split": "split.json", "profile": None, "temperature": 1.0}
    return ProbabilityIndex(**(values | {"models": {"0": "a", "1": "b"}} | changes))


def write(
    photographs: Path, bundles: Sequence[Bundle], out: Path, **options: object
) -> tuple[ProbabilityIndex, list[MapResult]]:
    tasks = fold_tasks(list_pairs(photographs).pairs, FOLDS)
    results: list[MapResult] = []
    index = make_maps(
        models_of(bundles),
        tasks,
        index_of(temperature=options.get("temperature", 1.0)),
        out,
        MapOptions(max_pixels=10_000, **options),
        lambda result, _total: results.append(result),
    )
    return index, results


@pytest.fixture(scope="module")
def maps(photographs: Path, bundles: list[Bundle], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Maps that are not changed by tests."""
    out = tmp_path_factory.mktemp("maps") / "maps"
    write(photographs, bundles, out)
    return out


def test_each_photograph_is_predicted_by_the_model_of_its_fold(
    photographs: Path, bundles: list[Bundle], maps: Path
) -> None:
    index = read_index(maps)
    assert index.complete
    assert set(index.photographs) == {*FOLDS[0], *FOLDS[1]}
    root = photographs / KAGGLE_FOLDER
    for fold, stems in FOLDS.items():
        segmenter = BundleSegmenter(bundles[fold])
        for stem in stems[:3]:
            record, stored = index.photographs[stem], read_map(maps / f"{stem}.npz")
            assert (record.fold, record.model_id) == (fold, bundles[fold].model_id)
            assert stored.record == record
            image = read_image(root / IMAGES_FOLDER / f"{stem}.png")
            expected = softmax(segmenter.logits(image))
            assert np.abs(stored.probabilities / 255 - expected).max() <= 0.5 / 255 + 1e-6
            truth = read_mask(root / MASKS_FOLDER / f"{stem}.png", "colours", DEFAULT_CLASSES)
            assert record.confusion == confusion(truth, segmenter.segment(image).mask, 6).tolist()
            assert np.array_equal(stored.truth, truth[::16, ::16])
            assert np.allclose(stored.log_probabilities, np.log(expected)[:, ::16, ::16], atol=0.02)


def test_scores_are_those_of_all_folds_and_places(maps: Path) -> None:
    index = read_index(maps)
    places = {"place 1": list(FOLDS[0]), "place 2": list(FOLDS[1][:6]), "place 3": list(FOLDS[1][6:])}
    found = score_maps(index.model_copy(update={"places": places}))
    assert found is not None
    matrices = {stem: np.array(record.confusion) for stem, record in index.photographs.items()}
    assert found.scores == compute_metrics(matrices.values(), DEFAULT_CLASSES)
    for name, stems in (("0", FOLDS[0]), ("1", FOLDS[1])):
        assert found.by_fold[name].miou == compute_metrics((matrices[stem] for stem in stems), DEFAULT_CLASSES).miou
    mious = sorted(
        compute_metrics((matrices[stem] for stem in stems), DEFAULT_CLASSES).miou for stems in places.values()
    )
    assert found.miou_quartiles is not None
    assert (found.miou_quartiles[0], found.miou_quartiles[2], found.miou_quartiles[4]) == pytest.approx(mious)
    assert found.by_place["place 2"].photographs == 6


def test_places_are_connected_photographs() -> None:
    matches = [Match("a", "c", 20), Match("c", "d", 12), Match("b", "z", 30)]
    assert group_places(["a", "b", "c", "d"], matches) == {"place 1": ["a", "c", "d"], "place 2": ["b"]}


def test_photographs_with_an_up_to_date_map_are_skipped(
    photographs: Path, bundles: list[Bundle], tmp_path: Path
) -> None:
    first, _ = write(photographs, bundles, tmp_path / "maps")
    (tmp_path / "maps/003.npz").write_bytes(b"damaged")
    (tmp_path / "maps/004.npz").unlink()
    again, results = write(photographs, bundles, tmp_path / "maps")
    assert [result.stem for result in results if not result.skipped] == ["003", "004"]
    assert again == first
    _, results = write(photographs, bundles, tmp_path / "maps", temperature=2.0)
    assert not any(result.skipped for result in results)
    _, results = write(photographs, list(reversed(bundles)), tmp_path / "maps", temperature=2.0)
    assert not any(result.skipped for result in results)


def test_a_damaged_file_does_not_affect_the_others(bundles: list[Bundle], tmp_path: Path) -> None:
    data = make_photographs(tmp_path / "drone", COUNT)
    (data / KAGGLE_FOLDER / IMAGES_FOLDER / "005.png").write_bytes(b"not an image")
    (data / KAGGLE_FOLDER / MASKS_FOLDER / "020.png").write_bytes(b"not a mask")
    index, results = write(data, bundles, tmp_path / "maps")
    assert len(results) == COUNT
    assert set(index.failed) == {"005", "020"}
    assert set(index.photographs) == {*FOLDS[0], *FOLDS[1]} - {"005", "020"}
    assert not (tmp_path / "maps/005.npz").exists()
    with pytest.raises(DatasetError, match="incomplete"):
        calibrate_from_maps(bundles[0], [tmp_path / "maps"])


def test_other_folders_are_not_written_to(photographs: Path, bundles: list[Bundle], tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(OutputExistsError, match=INDEX_NAME):
        write(photographs, bundles, tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["mine.txt"]


def test_a_fold_without_a_model_is_an_error(photographs: Path, bundles: list[Bundle], tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="no model for fold 1"):
        write(photographs, bundles[:1], tmp_path / "maps")


def test_a_photograph_in_two_folds_is_an_error(photographs: Path) -> None:
    with pytest.raises(DatasetError, match="several folds") as raised:
        fold_tasks(list_pairs(photographs).pairs, {0: ("000", "001"), 2: ("001", "002")})
    assert "001: folds 0, 2" in str(raised.value)


def test_plan_lists_what_the_chosen_folds_leave_out(photographs: Path, tmp_path: Path) -> None:
    split = tmp_path / "split.json"
    train = [*FOLDS[0], *FOLDS[1][2:]]
    folds = [
        {"train": list(FOLDS[1][2:]), "val": list(FOLDS[0][1:]), "dropped": [FOLDS[0][0]]},
        {"train": list(FOLDS[0]), "val": list(FOLDS[1][2:]), "dropped": []},
    ]
    split.write_text(json.dumps({"train": train, "val": list(FOLDS[1][:2]), "folds": folds}))
    plan = plan_maps(photographs, split, folds=[0])
    assert [(task.stem, task.fold) for task in plan.tasks] == [(stem, 0) for stem in FOLDS[0][1:]]
    assert plan.first_nnunet_fold == 1  # the validation part is nnU-Net's fold 0
    assert plan.dropped == {"0": ["000"]}
    assert plan.never_validated == (FOLDS[0][0], *FOLDS[1][2:])
    with pytest.raises(ConfigurationError, match="has folds 0 to 1"):
        plan_maps(photographs, split, folds=[2])
    part = plan_maps(photographs, split, part="val")
    assert [(task.stem, task.fold) for task in part.tasks] == [(stem, None) for stem in FOLDS[1][:2]]


# Calibration


def test_calibration_is_fitted_on_the_maps(maps: Path, bundles: list[Bundle], tmp_path: Path) -> None:
    upgraded = add_blocks(bundles[0], tmp_path / "new", maps=[maps])
    calibration = upgraded.manifest.calibration
    assert calibration is not None
    assert calibration.source.startswith(
        "24 photographs of drone, each predicted by the model of the fold that was not"
    )
    logits, truths = [], []
    for stem in (*FOLDS[0], *FOLDS[1]):
        stored = read_map(maps / f"{stem}.npz")
        logits.append(np.log(np.maximum(stored.probabilities[:, ::16, ::16], 0.5) / 255).reshape(6, -1))
        truths.append(stored.truth.reshape(-1))
    expected = fit_temperature(np.concatenate(logits, axis=1).astype(np.float32), np.concatenate(truths))
    assert calibration.temperature == pytest.approx(expected, abs=0.1)
    assert calibration.unlike_training is not None
    brightness = [record.statistics["brightness"] for record in read_index(maps).photographs.values()]
    assert calibration.unlike_training.features["brightness"].centre == pytest.approx(np.median(brightness), rel=1e-3)
    assert "disagreement" in calibration.unlike_training.features


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"complete": False}, "incomplete"),
        ({"kind": "one model"}, "not out of fold"),
        ({"temperature": 1.5}, "temperature 1.5"),
        ({"failed": {"000": "?"}}, "incomplete"),
    ],
)
def test_unsuitable_maps_are_refused(
    maps: Path, bundles: list[Bundle], tmp_path: Path, changes: dict[str, object], words: str
) -> None:
    content = json.loads((maps / INDEX_NAME).read_text())
    (tmp_path / INDEX_NAME).write_text(json.dumps(content | changes))
    with pytest.raises(DatasetError, match=words):
        calibrate_from_maps(bundles[0], [tmp_path])


def test_all_problems_of_maps_are_listed(maps: Path, bundles: list[Bundle], tmp_path: Path) -> None:
    content = json.loads((maps / INDEX_NAME).read_text())
    content["photographs"] = dict(list(content["photographs"].items())[:5])
    for record in content["photographs"].values():
        record["profile"] = "absent"
    (tmp_path / INDEX_NAME).write_text(json.dumps(content))
    with pytest.raises(DatasetError) as raised:
        calibrate_from_maps(bundles[0], [tmp_path])
    assert [line.rpartition(": ")[2].strip() for line in str(raised.value).splitlines()[1:]] == [
        "has 5 photographs; use at least 20",
        "has profile absent, which the bundle lacks",
        "- No folder has maps of the default profile, fast.",
    ]


# Command


def command(*words: object) -> tuple[int, str]:
    done = CliRunner().invoke(app, ["probabilities", *map(str, words)])
    if done.exception and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done.exit_code, done.output


def test_command_writes_the_maps_of_the_folds(
    photographs: Path, bundles: list[Bundle], maps: Path, tmp_path: Path
) -> None:
    folds = [
        {"train": list(FOLDS[1 - fold]), "val": list(stems)[1:], "dropped": [stems[0]]} for fold, stems in FOLDS.items()
    ]
    split = tmp_path / "split.json"
    split.write_text(json.dumps({"train": [*FOLDS[0], *FOLDS[1]], "folds": folds}))
    words = [photographs, "--split", split, "--out", tmp_path / "maps"]
    both = [word for bundle in bundles for word in ("--model", bundle.folder)]
    code, output = command(*words, *both)
    assert code == 0, output
    # both models state fold 0
    assert [line.split()[1] for line in output.splitlines() if line.startswith("note: ")] == [str(bundles[1].folder)]
    assert "22 maps (out of fold), 0 failed, 2 dropped by the folds, 2 never validated" in output
    index = read_index(tmp_path / "maps")
    assert index.dropped == {"0": ["000"], "1": ["012"]}
    assert index.never_validated == ["000", "012"]
    assert index.photographs["001"] == read_index(maps).photographs["001"]
    code, output = command(*words[:-1], tmp_path / "one", "--fold", "1", *both[2:], "--json")
    assert code == 0, output
    shown = json.loads(output[output.index("{") :])
    assert set(shown["index"]["photographs"]) == set(FOLDS[1][1:])
    assert shown["scores"]["by_fold"]["1"]["photographs"] == 11
    assert command(*words, *both[:2])[0] == 2
    assert command(*words, "--fold", "2", *both[:2])[0] == 2


def test_command_writes_maps_of_photographs_without_masks(
    photographs: Path, bundles: list[Bundle], tmp_path: Path
) -> None:
    folder = photographs / KAGGLE_FOLDER / IMAGES_FOLDER
    plain = tmp_path / "photographs"
    plain.mkdir()
    for file in sorted(folder.iterdir())[:3]:
        (plain / file.name).write_bytes(file.read_bytes())
    (plain / "broken.png").write_bytes(b"broken")
    code, output = command(plain, "--out", tmp_path / "maps", "--model", bundles[0].folder)
    assert code == 1
    assert "3 maps (one model), 1 failed" in output
    index = read_index(tmp_path / "maps")
    assert index.kind == "one model"
    assert read_map(tmp_path / "maps/000.npz").truth is None
    assert score_maps(index) is None


def test_a_task_keeps_the_fold_in_its_record(photographs: Path, bundles: list[Bundle], tmp_path: Path) -> None:
    pair = list_pairs(photographs).pairs[0]
    for fold in (0, None):
        models = [FoldModel(fold, lambda: BundleSegmenter(bundles[0]), bundles[0].model_id, DEFAULT_CLASSES)]
        tasks = [MapTask(pair.files, pair, fold)]
        index = make_maps(models, tasks, index_of(), tmp_path / "maps", MapOptions(max_pixels=10_000))
        assert index.photographs[pair.stem].fold == fold
