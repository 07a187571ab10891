"""`droneseg land`: table, JSON, drawings, MAVLink and exit codes; `droneseg evaluate --landing`."""

import json
import math
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from droneseg.core.camera import Ground
from droneseg.core.class_files import CLASSES_NAME, MaskColours, write_classes
from droneseg.core.classes import DEFAULT_CLASSES
from droneseg.core.landing_grid import LandingGrid, LandingPolicy
from droneseg.core.prediction import Prediction
from droneseg.flows.landing_files import LandResult, mavlink_fields
from droneseg.inference.batch import ViewOptions
from droneseg.inference.landing import LandingOptions, find_sites
from support.bundles import make_bundle
from support.workspace import Workspace

LANDING_ID = DEFAULT_CLASSES.id_of("landing-zones")
SIZE = (120, 160)
SHOWN = {"landing-zones": (255, 255, 255), "obstacles": (1, 1, 1), "water": (0, 0, 255)}
"""Colours that the network of the bundle classifies as these classes."""
WORDS = ("land", "photos", "--model", "bundle", "--radius-px", "12")


def write_photograph(
    path: Path, ground: str = "landing-zones", obstacle: slice | None = None, *, mask: bool = False
) -> Path:
    """Write a photograph of one class, with obstacles in some columns, or its true mask."""
    colours = {entry.name: entry.colour for entry in DEFAULT_CLASSES} if mask else SHOWN
    pixels = np.full((*SIZE, 3), colours[ground], np.uint8)
    if obstacle:
        pixels[:, obstacle] = colours["obstacles"]
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return path


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    make_bundle(tmp_path / "bundle", patch=(64, 64))
    write_photograph(tmp_path / "photos/field.png")
    write_photograph(tmp_path / "photos/lake.png", "water")
    return Workspace(tmp_path)


def test_table_names_the_best_site_and_the_reason_for_none(workspace: Workspace) -> None:
    shown = workspace.run(*WORDS).stdout
    assert "1 of 2 photographs have a site" in shown
    assert "too_small" in shown


def test_json_has_one_answer_per_photograph(workspace: Workspace) -> None:
    results = json.loads(workspace.run(*WORDS, "--json").stdout)["results"]
    assert [Path(result["source"]).name for result in results] == ["field.png", "lake.png"]
    field_answer, lake_answer = (result["answer"] for result in results)
    best = field_answer["sites"][0]
    assert (best["rank"], best["class"], best["radius_m"]) == (1, "landing-zones", None)
    assert abs(best["x_px"] - (SIZE[1] - 1) / 2) < 1
    assert (lake_answer["decision"], lake_answer["reason"], lake_answer["sites"]) == ("no_safe_site", "too_small", [])


def test_no_site_in_any_photograph_is_exit_code_3_on_request(workspace: Workspace) -> None:
    lake = ("land", "photos/lake.png", *WORDS[2:])
    assert workspace.run(*lake).returncode == 0
    assert workspace.run(*lake, "--fail-if-none", check=False).returncode == 3
    assert workspace.run(*WORDS, "--fail-if-none").returncode == 0


def test_a_broken_photograph_does_not_affect_the_others(workspace: Workspace, tmp_path: Path) -> None:
    (tmp_path / "photos/broken.jpg").write_bytes(b"\xff\xd8\xff")
    done = workspace.run(*WORDS, "--json", check=False)
    assert done.returncode == 1
    assert "broken.jpg" in done.stderr
    assert [result["error"] is None for result in json.loads(done.stdout)["results"]] == [False, True, True]


def test_answers_and_drawings_are_written(workspace: Workspace, tmp_path: Path) -> None:
    workspace.run(*WORDS, "--out", "sites", "--overlay")
    names = sorted(file.name for file in (tmp_path / "sites").iterdir())
    assert names == ["field_landing.json", "field_landing.png", "lake_landing.json", "lake_landing.png"]
    assert json.loads((tmp_path / "sites/field_landing.json").read_text())["decision"] == "site"
    with Image.open(tmp_path / "sites/field_landing.png") as drawing:
        assert drawing.width == SIZE[1]
    assert workspace.run(*WORDS, "--overlay", check=False).returncode == 2


def test_drawings_do_not_replace_input_images(workspace: Workspace, tmp_path: Path) -> None:
    write_photograph(tmp_path / "photos/field_landing.png")
    before = (tmp_path / "photos/field_landing.png").read_bytes()
    done = workspace.run(*WORDS, "--out", "photos", "--overlay", check=False)
    assert (done.returncode, "field_landing.png is an input image" in done.stderr) == (1, True)
    assert (tmp_path / "photos/field_landing.png").read_bytes() == before
    (tmp_path / "file").touch()
    assert "file is a file" in workspace.run(*WORDS, "--out", "file", check=False).stderr


def test_metres_need_a_scale(workspace: Workspace) -> None:
    words = ("land", "photos/field.png", "--model", "bundle", "--radius", "1", "--json")
    (unknown,) = json.loads(workspace.run(*words).stdout)["results"]
    assert unknown["answer"]["reason"] == "unknown_scale"
    known = json.loads(workspace.run(*words, "--gsd", "0.1", "--clearance", "0", "--clearance-people", "0").stdout)
    assert known["results"][0]["answer"]["policy"]["radius_px"] == pytest.approx(10)


def test_without_a_site_there_is_no_table(workspace: Workspace) -> None:
    shown = workspace.run("land", "photos/field.png", "--model", "bundle", "--radius", "1").stdout
    assert shown.splitlines()[0] == "0 of 1 photographs have a site"
    assert "rank" not in shown
    assert "no site (unknown_scale)" in shown


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (("--radius", "1"), "radius_m and radius_px"),
        (("--clearance-px", "-1"), "--clearance-px"),
        (("--max-sites", "0"), "--max-sites"),
        (("--allow", "water"), "--allow"),
        (("--mavlink", "--json"), "--mavlink"),
    ],
)
def test_wrong_options_are_named(workspace: Workspace, words: tuple[str, ...], named: str) -> None:
    done = workspace.run(*WORDS, *words, check=False)
    assert done.returncode == 2
    assert named in done.stderr


def test_mavlink_fields_fit_the_message(workspace: Workspace) -> None:
    mavlink = pytest.importorskip("pymavlink.dialects.v20.common")
    words = ("land", "photos/field.png", "--model", "bundle", "--radius-px", "12", "--mavlink")
    (target,) = json.loads(workspace.run(*words, "--gsd", "0.1").stdout)
    assert (target["angle_x"], target["angle_y"], target["size_x"], target["distance"]) == (None, None, None, None)
    del target["source"]
    assert target["frame"] == mavlink.MAV_FRAME_BODY_FRD
    assert target["type"] == mavlink.LANDING_TARGET_TYPE_VISION_OTHER
    names = set(mavlink.MAVLink_landing_target_message.fieldnames)
    assert set(target) <= names
    filled = {name: value if value is not None else math.nan for name, value in target.items()}
    message = mavlink.MAVLink_landing_target_message(time_usec=0, **filled)
    assert message.get_type() == "LANDING_TARGET"


def test_mavlink_angles_and_distance_point_at_the_site() -> None:
    ids = np.full((300, 400), LANDING_ID, np.uint8)
    ids[:, :250] = DEFAULT_CLASSES.id_of("obstacles")
    ids[120:] = DEFAULT_CLASSES.id_of("obstacles")
    grid = LandingGrid.empty(DEFAULT_CLASSES, ids.shape)
    grid.add((np.arange(len(DEFAULT_CLASSES))[:, None, None] == ids).astype(np.float32), 0)
    ground = Ground(gsd_m=0.04, gsd_error=0.1, source="height", height_m=20)
    prediction = Prediction(ids, DEFAULT_CLASSES, {}, 1, {}, "aaa", ground, landing_grid=grid)
    answer = find_sites(prediction, LandingPolicy(), LandingOptions(radius_px=20, clearance_px=2))
    result = LandResult(source="a", size=(300, 400), answer=answer)
    fields = mavlink_fields(result, ViewOptions())
    site = answer.sites[0]
    metres = 0.04 * (site.x_px - 199.5), 0.04 * (site.y_px - 149.5)
    assert metres[0] > 0 > metres[1]  # to the right and above the middle
    assert fields["angle_x"] == pytest.approx(math.atan2(metres[0], 20))
    assert fields["angle_y"] == pytest.approx(math.atan2(metres[1], 20))
    assert fields["distance"] == pytest.approx(math.hypot(*metres, 20))
    assert fields["size_x"] == fields["size_y"] == pytest.approx(2 * math.atan2(0.04 * site.radius_px, 20))
    assert mavlink_fields(LandResult(source="a", error="cannot be read"), ViewOptions()) == {}
    georeferenced = answer.model_copy(update={"ground": ground.model_copy(update={"source": "georeference"})})
    for unknown in (
        mavlink_fields(result, ViewOptions(gsd_m=0.04)),
        mavlink_fields(result.model_copy(update={"answer": georeferenced}), ViewOptions()),
    ):
        assert {unknown[name] for name in ("angle_x", "angle_y", "distance", "size_x", "size_y")} == {None}


def test_landing_sites_are_evaluated_and_calibrated(workspace: Workspace, tmp_path: Path) -> None:
    data = tmp_path / "data"
    for index in range(24):
        obstacle = slice(70, 75) if index % 4 == 0 else None
        write_photograph(data / f"images/{index:03d}.png", obstacle=obstacle)
        write_photograph(data / f"masks/{index:03d}.png", obstacle=obstacle, mask=True)
    # a mask with an obstacle that the photograph does not show
    write_photograph(data / "masks/001.png", obstacle=slice(78, 82), mask=True)
    words = ("evaluate", "data", "--landing", "--model", "bundle", "--radius-px", "12", "--json")
    risk = json.loads(workspace.run(*words, "--report", "report").stdout)["risk"]
    assert (risk["photographs"], risk["with_site"], risk["unsafe"]["failures"]) == (24, 24, 1)
    assert (tmp_path / "report/landing.png").is_file()
    for wrong in (("data",), ("data", "data", "--landing"), ("data", "data", "--radius-px", "5")):
        assert workspace.run("evaluate", *wrong, check=False).returncode == 2


def test_limits_are_calibrated_on_maps_of_folds_and_used_by_land(workspace: Workspace, tmp_path: Path) -> None:
    stems = [f"{index:03d}" for index in range(36)]
    for index, stem in enumerate(stems):
        obstacle = slice(70, 75) if index % 6 == 0 else None
        write_photograph(tmp_path / f"data/images/{stem}.png", obstacle=obstacle)
        write_photograph(tmp_path / f"data/masks/{stem}.png", obstacle=obstacle, mask=True)
    folds = [{"train": stems[18:], "val": stems[:18]}, {"train": stems[:18], "val": stems[18:]}]
    (tmp_path / "folds.json").write_text(json.dumps({"train": stems, "val": [], "test": [], "folds": folds}))
    models = ("--model", "bundle", "--model", "bundle")
    workspace.run("probabilities", "data", "--split", "folds.json", *models, "--gsd", "0.1", "--out", "maps")
    words = ("models", "calibrate-landing", "bundle", "--data", "maps", "--out", "new", "--risk", "0.1")
    shown = json.loads(workspace.run(*words, "--radius-px", "10", "--json").stdout)
    policy = shown["fast"]["policy"]
    assert (policy["bound"], policy["alpha"]) == (0.1, 0.05)
    assert policy["lengths"] == dict.fromkeys(policy["lengths"]) | {
        "radius_px": 10,
        "clearance_m": 1,
        "clearance_people_m": 5,
    }
    assert "36 photographs of data" in policy["calibrated_on"]
    assert "0 of 36" in policy["calibrated_on"]
    land = ("land", "photos/field.png", "--model", "new", "--gsd", "0.1", "--json")
    for radius, bound in (("10", 0.1), ("11", None)):
        answer = json.loads(workspace.run(*land, "--radius-px", radius).stdout)["results"][0]["answer"]
        assert answer["policy"]["bound"] == bound
    failed = workspace.run(*words[:-1], "0.001", "--force", "--radius-px", "10", check=False)
    assert failed.returncode == 1
    assert "No limit of danger" in failed.stderr


def test_sites_over_unlabelled_ground_are_not_counted(workspace: Workspace, tmp_path: Path) -> None:
    for stem in ("labelled", "unlabelled"):
        write_photograph(tmp_path / f"data/images/{stem}.png")
        write_photograph(tmp_path / f"data/masks/{stem}.png", mask=True)
    Image.fromarray(np.full((*SIZE, 3), 9, np.uint8)).save(tmp_path / "data/masks/unlabelled.png")
    write_classes(tmp_path / "data" / CLASSES_NAME, MaskColours(ignored=((9, 9, 9),)))
    words = ("evaluate", "data", "--landing", "--model", "bundle", "--radius-px", "12")
    shown = workspace.run(*words).stdout
    assert re.search(r"photographs with a site +│ +2 of 2", shown)
    assert re.search(r"first sites that contain anything unsafe +│ +0 of 1 ", shown)
    assert re.search(r"first sites with too few labels, not counted +│ +1 ", shown)
    risk = json.loads(workspace.run(*words, "--json").stdout)["risk"]
    assert (risk["unlabelled"], risk["false_abstentions"]["number"]) == (1, 1)
