"""The script of the model card measures all parts in one run, and its figures are those of the metrics."""

import importlib
import json
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from PIL import Image as pillow

from droneseg.core.classes import DEFAULT_CLASSES
from droneseg.core.images import encode_png, read_image
from droneseg.core.masks import encode_grey_ids, encode_mask
from droneseg.core.metrics import compute_metrics, confusion
from droneseg.data.dataset import list_pairs, read_true_mask
from droneseg.data.synthetic import generate_scene
from droneseg.inference.segmenter import BundleSegmenter
from support.bundles import TRAINED_AT, VIEWS, make_bundle

SCRIPT = Path(__file__).parents[2] / "benchmarks/model_card.py"
WATER, LANDING = 2, 5
# one original class for each class, see the table of the script
ORIGINALS = np.array([0, 6, 5, 3, 15, 1], np.uint8)


@pytest.fixture(scope="module")
def script() -> ModuleType:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(SCRIPT.parent)  # the script imports a module beside it
        return importlib.import_module(SCRIPT.stem)


def write_data(folder: Path) -> None:
    """Write three scenes as all kinds of data that the script reads."""
    for name in ("data/images", "data/masks", "native/images", "native/masks_24", "labelled/images", "labelled/masks"):
        (folder / name).mkdir(parents=True)
    for name in ("water/images", "water/masks", "places"):
        (folder / name).mkdir(parents=True)
    for seed in range(3):
        image, mask = generate_scene(seed, 96, 64)
        stem, png = f"{seed:03d}", encode_png(image)
        (folder / f"data/images/{stem}.png").write_bytes(png)
        (folder / f"data/masks/{stem}.png").write_bytes(encode_mask(mask, DEFAULT_CLASSES))
        pillow.fromarray(image).resize((150, 100)).save(folder / f"native/images/{stem}.jpg", quality=95)
        native = pillow.fromarray(ORIGINALS[mask]).resize((150, 100), pillow.Resampling.NEAREST)
        native.save(folder / f"native/masks_24/{stem}.png")
        unlabelled = mask.copy()
        unlabelled[:, :48] = 0
        (folder / f"labelled/images/seq{seed % 2}_{seed}.png").write_bytes(png)
        (folder / f"labelled/masks/seq{seed % 2}_{seed}.png").write_bytes(encode_grey_ids(unlabelled))
    image, mask = generate_scene(0, 96, 64)
    flooded, wet = image.copy(), mask.copy()
    flooded[20:40, :48], flooded[20:40, 48:], wet[20:40] = (0, 0, 255), (255, 255, 255), WATER
    (folder / "water/images/000__water1.png").write_bytes(encode_png(flooded))
    (folder / "water/masks/000__water1.png").write_bytes(encode_mask(wet, DEFAULT_CLASSES))
    (folder / "water/generated.json").write_text(json.dumps({"000__water1": "000"}))
    blue = np.full((64, 96, 3), (0, 0, 255), np.uint8)
    (folder / "places/lake.png").write_bytes(encode_png(blue))
    square = [[0.1, 0.1], [0.9, 0.1], [0.9, 0.9], [0.1, 0.9]]
    regions = [{"photo": "lake", "truth": kind, "polygon": square} for kind in ("water", "road")]
    (folder / "places/regions.json").write_text(json.dumps(regions))
    (folder / "people.json").write_text(json.dumps({"000": [[0, 0, 1500, 1000]]}))


def test_all_parts_are_measured_in_one_run(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_data(tmp_path)
    bundle = make_bundle(tmp_path / "bundle", patch=(64, 96), ground=TRAINED_AT, context=VIEWS)
    monkeypatch.setenv("DRONESEG_CACHE_DIR", str(tmp_path / "cache"))
    words = ["model_card.py", bundle.folder, "--data", tmp_path / "data", "--native", tmp_path / "native", "--by-place"]
    words += ["--labelled", tmp_path / "labelled", "--regions", tmp_path / "places", "--generated", tmp_path / "water"]
    words += ["--people", tmp_path / "people.json", "--out", tmp_path / "card"]
    monkeypatch.setattr(sys, "argv", list(map(str, words)))
    script.main()
    shown = capsys.readouterr().out
    card = json.loads((tmp_path / "card/card.json").read_text())
    assert (tmp_path / "card/card.md").read_text() == shown
    segmenter = BundleSegmenter(bundle)
    pairs = list_pairs(tmp_path / "data").pairs
    masks = [(read_true_mask(pair), segmenter.segment(read_image(pair.image)).mask) for pair in pairs]
    expected = compute_metrics((confusion(truth, mask, 6) for truth, mask in masks), DEFAULT_CLASSES)
    assert card["dataset"]["miou"] == pytest.approx(expected.miou)
    assert card["dataset"]["unsafe_landing_rate"] == pytest.approx(expected.unsafe_landing_rate)
    assert set(card["dataset"]["exposures"]) == {"x0.35", "x0.6", "x1.6"}
    assert sum(len(place["photographs"]) for place in card["dataset"]["places"]["by_place"].values()) == 3
    truth, mask = masks[0]
    people = card["dataset"]["people"]
    assert people["people"] == 1
    assert people["much_landing"] == float(np.mean(mask[truth == 4] == LANDING) >= 0.5)
    assert set(card["native"]) == {"0.5x", "1x", "2x", "people"}
    halves = [confusion(truth[:, 48:], mask[:, 48:], 6) for truth, mask in (masks[0], masks[2])]
    assert card["labelled"]["labelled"]["seq0"]["miou"] == pytest.approx(compute_metrics(halves, DEFAULT_CLASSES).miou)
    assert set(card["labelled"]["labelled"]) == {"seq0", "seq1"}
    assert [region["right"] for region in card["regions"]["places"]["regions"]] == [True, False]
    assert card["generated"]["photographs"] == 1
    assert 0.3 < card["generated"]["called_landing"] < 0.7
    assert card["generated"]["called_landing"] + card["generated"]["called_water"] == pytest.approx(1, abs=0.01)
    assert shown.count("| exposure") == 3
