"""`import droneseg`: lazy names, all kinds of photographs, the same results as the command line, clear errors."""

import json
import subprocess
import sys
import tomllib
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import droneseg
from droneseg.core.classes import DEFAULT_CLASSES
from droneseg.core.errors import (
    BrokenImageError,
    BundleError,
    ConfigurationError,
    ImageTooLargeError,
)
from droneseg.core.masks import read_mask
from droneseg.data.synthetic import generate_scene
from support.bundles import make_bundle
from support.raw_datasets import write_case
from support.workspace import Workspace

ROOT = Path(__file__).parents[1]
ORIENTATION, SIX = 0x0112, 6  # shown turned by 90 degrees clockwise


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_bundle(tmp_path_factory.mktemp("model") / "bundle", patch=(32, 48)).folder


@pytest.fixture(scope="module")
def model(bundle: Path) -> droneseg.Model:
    return droneseg.load(bundle)


@pytest.fixture(scope="module")
def scene() -> np.ndarray:
    return generate_scene(3, 120, 90)[0]


@pytest.fixture
def photograph(tmp_path: Path, scene: np.ndarray) -> Path:
    """A JPEG that is stored lying down, with an EXIF orientation."""
    exif = Image.Exif()
    exif[ORIENTATION] = SIX
    path = tmp_path / "flight" / "DJI_0001.JPG"
    path.parent.mkdir()
    Image.fromarray(scene).save(path, exif=exif, quality=95)
    return path


def test_import_loads_neither_numpy_nor_pillow_nor_pydantic() -> None:
    script = "import sys, droneseg; droneseg.__version__; dir(droneseg); print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout.split()
    ours = {name for name in loaded if name.startswith("droneseg")}
    assert ours == {"droneseg"}
    assert not {"numpy", "PIL", "pydantic", "typer", "openvino", "onnxruntime"} & set(loaded)


def test_names_are_those_of_the_version_that_is_installed() -> None:
    assert droneseg.__version__ == tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert all(getattr(droneseg, name) is not None for name in droneseg.__all__)
    assert set(droneseg.__all__) <= set(dir(droneseg))
    assert [entry.name for entry in droneseg.CLASSES][5] == "landing-zones"
    with pytest.raises(AttributeError, match="'droneseg' has no attribute 'lode'"):
        droneseg.lode  # noqa: B018  # misspelt on purpose


def test_type_checkers_see_the_types_of_the_public_names(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "import droneseg\n"
        "result = droneseg.load('bundle')('photo.jpg', gsd_m=0.02)\n"
        "reveal_type(result.mask.dtype)\n"
        "reveal_type(result.warnings[0].message)\n"
        "reveal_type(result.overlay())\n"
        "reveal_type(droneseg.__version__)\n"
        "droneseg.lode()\n"
        "droneseg.load()([1, 2])\n"
    )
    command = [sys.executable, "-m", "mypy", "--no-incremental", "--follow-imports=silent", str(script)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    lines = [line.removeprefix(f"{script}:") for line in done.stdout.splitlines() if "script.py" in line]
    revealed = [line.partition('type is "')[2].rstrip('"') for line in lines if "Revealed" in line]
    assert "uint8" in done.stdout or "unsignedinteger" in revealed[0]
    assert [name.rpartition(".")[2] for name in revealed[1:]] == ["str", "Image", "str"], done.stdout
    assert [line.partition(":")[0] for line in lines if "error:" in line] == ["7", "8"], done.stdout


def test_load_uses_the_settings_and_a_folder_replaces_them(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BundleError, match="No model at nnUNet_results/champion"):
        droneseg.load()
    monkeypatch.setenv("DRONESEG_MODEL", str(bundle))
    model = droneseg.load(profile="exact", runtime="onnxruntime")
    assert model.profile == "exact"
    assert "ONNX Runtime" in repr(model)
    assert model.model_id == droneseg.load(str(bundle)).model_id == droneseg.load(settings=droneseg.Settings()).model_id
    with pytest.raises(ConfigurationError, match=r"'tensorrt'.*auto, openvino, onnxruntime"):
        droneseg.load(runtime="tensorrt")
    with pytest.raises(ConfigurationError, match="no profile 'fastest'"):
        droneseg.load(profile="fastest")


def test_all_kinds_of_a_photograph_have_the_same_result(model: droneseg.Model, photograph: Path) -> None:
    data = photograph.read_bytes()
    upright = np.rot90(np.asarray(Image.open(photograph)), k=-1)
    with Image.open(photograph) as opened, Image.open(BytesIO(data)) as anonymous:
        kinds = (str(photograph), photograph, data, opened, anonymous, upright)
        results = [model(kind) for kind in kinds]
    for result in results:
        assert result.mask.shape == (120, 90)
        assert np.array_equal(result.image, upright)
        assert np.array_equal(result.mask, results[0].mask)
        assert result.ground == results[0].ground
        assert result.warnings == results[0].warnings
        assert set(result.timings_s) == {"decode", "preprocess", "network", "postprocess"}
    assert [result.source for result in results] == [photograph, photograph, None, photograph, None, None]
    assert len(np.unique(results[0].mask)) > 2


def test_result_is_that_of_predict(model: droneseg.Model, bundle: Path, photograph: Path, tmp_path: Path) -> None:
    Workspace(tmp_path).run(
        "predict", str(photograph), "--model", str(bundle), "--out", "masks", "--overlay", "--gsd", "0.02"
    )
    result = model(photograph, gsd_m=0.02)
    saved = result.save(tmp_path / "own", overlay=True)
    assert saved == tmp_path / "own/DJI_0001.png"
    for name in ("DJI_0001.png", "DJI_0001_overlay.png"):
        assert (tmp_path / "own" / name).read_bytes() == (tmp_path / "masks" / name).read_bytes(), name
    (line,) = (tmp_path / "masks/predictions.jsonl").read_text().splitlines()
    logged = json.loads(line)["prediction"]
    assert logged["ground"] == json.loads(result.ground.model_dump_json())
    assert logged["warnings"] == [json.loads(warning.model_dump_json()) for warning in result.warnings]
    assert logged["confidence"] == result.confidence
    assert logged["class_fractions"] == result.class_fractions


@pytest.mark.parametrize(
    ("photo", "options", "error", "message"),
    [
        ([1, 2], {}, TypeError, r"path, bytes, a PIL image or an RGB array of shape \(H, W, 3\).*got list"),
        (None, {}, TypeError, "got NoneType"),
        (np.zeros((4, 5, 3)), {}, TypeError, r"got float64 of shape \(4, 5, 3\)"),
        (np.zeros((4, 5), np.uint8), {}, ValueError, r"numpy.stack\(\[image\] \* 3"),
        (np.zeros((4, 5, 4), np.uint8), {}, ValueError, r"image\[..., :3\]"),
        (np.zeros((0, 5, 3), np.uint8), {}, ValueError, "Pass an image with pixels"),
        (np.zeros((4, 5, 3), np.uint8), {"height_m": 20}, ValueError, "focal length.*Pass gsd_m"),
        (np.zeros((4, 5, 3), np.uint8), {"gsd_m": 0}, ConfigurationError, "above 0"),
        (b"no image", {}, droneseg.errors.ImageError, "Unknown image format"),
        ("nowhere.png", {}, BrokenImageError, "nowhere.png: cannot be read"),
        (str(ROOT / "LICENSE"), {}, droneseg.errors.ImageError, "LICENSE: Unknown image format"),
        (Image.new("F", (4, 4)), {}, droneseg.errors.ImageError, "pixel mode 'F'"),
    ],
)
def test_errors_state_what_is_wrong_and_the_remedy(
    model: droneseg.Model, photo: object, options: dict[str, float], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        model(photo, **options)  # type: ignore[arg-type]  # wrong on purpose


def test_limit_on_pixels_is_that_of_the_settings(bundle: Path, photograph: Path) -> None:
    small = droneseg.load(bundle, settings=droneseg.Settings(max_pixels=1000))
    with Image.open(photograph) as opened:
        for photo in (photograph, photograph.read_bytes(), opened):
            with pytest.raises(ImageTooLargeError, match=r"120x90; the limit is 1,000 pixels"):
                small(photo)


def test_ground_resolution_is_that_of_the_argument(model: droneseg.Model, photograph: Path, scene: np.ndarray) -> None:
    for photo in (photograph, photograph.read_bytes(), scene, Image.fromarray(scene)):
        ground = model(photo, gsd_m=0.02).ground
        assert (ground.gsd_m, ground.gsd_error, ground.source) == (0.02, 0, "argument")
    unknown = model(scene)
    assert unknown.ground.gsd_m is None
    assert [warning.code for warning in unknown.warnings] == ["unknown_scale"]
    with pytest.raises(ConfigurationError, match="Pass one of them"):
        model(photograph, gsd_m=0.02, height_m=20)


def test_pillow_images_keep_the_metadata_of_their_files(model: droneseg.Model, scene: np.ndarray) -> None:
    xmp = (
        '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
        '<rdf:Description xmlns:d="http://www.dji.com/drone-dji/1.0/" d:RelativeAltitude="+4.00" '
        'd:GimbalPitchDegree="-90.00" d:CalibratedFocalLength="100.00"/></rdf:RDF></x:xmpmeta>'
    )
    buffer = BytesIO()
    Image.fromarray(scene).save(buffer, "JPEG", xmp=xmp.encode())
    of_file = model(buffer.getvalue()).ground
    assert (of_file.gsd_m, of_file.source) == (0.04, "height")  # 4 m / 100 px
    opened = Image.open(buffer)
    assert model(opened).ground == model(opened.copy()).ground == of_file
    assert model(np.asarray(opened)).ground.gsd_m is None


def test_save_writes_a_file_or_into_a_folder_but_never_over_the_photograph(
    model: droneseg.Model, photograph: Path, scene: np.ndarray, tmp_path: Path
) -> None:
    result = model(photograph)
    assert result.save(tmp_path / "new/mask.png") == tmp_path / "new/mask.png"
    assert np.array_equal(read_mask(tmp_path / "new/mask.png", "ids", DEFAULT_CLASSES), result.mask)
    assert not (tmp_path / "new/mask_overlay.png").exists()
    png = tmp_path / "flight/photo.png"
    Image.fromarray(scene).save(png)
    before = png.read_bytes()
    with pytest.raises(droneseg.errors.OutputExistsError, match="is the photograph itself"):
        model(png).save(png.parent)
    assert png.read_bytes() == before
    with pytest.raises(ValueError, match=r"PNG file, not mask.jpg"):
        result.save(tmp_path / "mask.jpg")
    with pytest.raises(ValueError, match="no file name"):
        model(scene).save(tmp_path)


def test_overlay_shows_the_photograph_with_a_legend_below(model: droneseg.Model, scene: np.ndarray) -> None:
    result = model(scene)
    overlay = result.overlay()
    assert overlay.mode == "RGB"
    assert overlay.width == 120
    assert overlay.height > 90
    assert not np.array_equal(np.asarray(overlay)[:90], scene)


def test_notebooks_show_a_reduced_overlay_and_the_shares(model: droneseg.Model, scene: np.ndarray) -> None:
    wide = np.tile(scene, (1, 18, 1))
    result = model(wide, gsd_m=0.0123)
    shown = Image.open(BytesIO(result._repr_png_()))
    assert shown.format == "PNG"
    assert shown.width == 720  # a third of 2160, the first size up to 1024
    assert shown.height > 30
    text = repr(result)
    assert text.startswith("<Result 2160x90, ")
    assert "1.2 cm" in text
    assert f"confidence {result.confidence:.1%}" in text
    assert "warnings: unknown_scale" in repr(model(scene[:40, :40]))


def test_loaded_model_accepts_opencv_arrays_with_reversed_channels(model: droneseg.Model, scene: np.ndarray) -> None:
    bgr = np.ascontiguousarray(scene[..., ::-1])
    assert np.array_equal(model(bgr[..., ::-1]).mask, model(scene).mask)
    assert not np.array_equal(model(bgr).mask, model(scene).mask)


def test_file_of_one_channel_is_refused(model: droneseg.Model, scene: np.ndarray, tmp_path: Path) -> None:
    write_case(tmp_path, "apart", scene, "RGB")
    write_case(tmp_path, "single", scene)
    assert np.array_equal(model(tmp_path / "single_0000.png").mask, model(scene).mask)
    with pytest.raises(droneseg.errors.ImageError, match=r"apart: has .* Pass an RGB array of all channels"):
        model(tmp_path / "apart_0000.png")
