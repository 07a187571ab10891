"""Ground resolution from metadata. Expected values are worked out by hand next to each test."""

import math
import time
import zlib
from functools import cache
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from PIL.TiffImagePlugin import IFDRational, ImageFileDirectory_v2

from droneseg.core.camera import (
    UNKNOWN_GROUND,
    WARNING_MESSAGES,
    Ground,
    WarningCode,
    check_scale,
    given_ground,
    read_ground,
)
from droneseg.core.errors import ConfigurationError

DJI = 'xmlns:drone-dji="http://www.dji.com/drone-dji/1.0/"'
PIX4D = 'xmlns:Camera="http://pix4d.com/camera/1.0/"'
PARROT = 'xmlns:drone-parrot="http://www.parrot.com/drone-parrot/1.0/"'
SKYDIO = 'xmlns:drone-skydio="https://www.skydio.com/drone-skydio/1.0/"'

MODEL, ORIENTATION = 0x0110, 0x0112
FOCAL, WIDTH, HEIGHT, ZOOM, EQUIVALENT = 0x920A, 0xA002, 0xA003, 0xA404, 0xA405
PLANE_RESOLUTION, PLANE_UNIT = 0xA20E, 0xA210


@cache
def blank(size: tuple[int, int], kind: str = "JPEG") -> bytes:
    buffer = BytesIO()
    Image.new("L", size).save(buffer, kind)
    return buffer.getvalue()


def exif_bytes(tags: dict[int, object]) -> bytes:
    exif = Image.Exif()
    for tag, value in tags.items():
        (exif if tag < 0x8000 else exif.get_ifd(0x8769))[tag] = value
    return exif.tobytes()


def xmp_bytes(namespaces: str = "", attributes: str = "", elements: str = "") -> bytes:
    return (
        '<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?><x:xmpmeta xmlns:x="adobe:ns:meta/">'
        '<rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
        f'<rdf:Description rdf:about="" {namespaces} {attributes}>{elements}</rdf:Description>'
        "</rdf:RDF></x:xmpmeta>" + " " * 200 + '<?xpacket end="w"?>'
    ).encode()


def jpeg(size: tuple[int, int], *, exif: dict[int, object] | None = None, xmp: bytes = b"") -> bytes:
    """JPEG with the given metadata, in segments that are put behind the first marker."""
    segments = b""
    for content in (exif_bytes(exif) if exif else b"", b"http://ns.adobe.com/xap/1.0/\0" + xmp if xmp else b""):
        if content:
            segments += b"\xff\xe1" + (len(content) + 2).to_bytes(2, "big") + content
    return b"\xff\xd8" + segments + blank(size)[2:]


def dji_xmp(*, height: str = "+40.00", pitch: str = "-90.00", more: str = "", prefix: str = "drone-dji") -> bytes:
    attributes = f'{prefix}:RelativeAltitude="{height}" {prefix}:GimbalPitchDegree="{pitch}" {more}'
    return xmp_bytes(f'xmlns:{prefix}="http://www.dji.com/drone-dji/1.0/"', attributes)


CALIBRATED = 'drone-dji:CalibratedFocalLength="2000.00"'


def test_a_given_ground_resolution_wins_over_metadata() -> None:
    ground = read_ground(jpeg((400, 300), xmp=dji_xmp(more=CALIBRATED)), gsd_m=0.031)
    assert ground == Ground(gsd_m=0.031, gsd_error=0.0, source="argument", height_m=40.0, pitch_deg=-90.0)


def test_a_given_height_replaces_the_height_in_the_metadata() -> None:
    # 60 m / 2000 px
    ground = read_ground(jpeg((4000, 3000), xmp=dji_xmp(more=CALIBRATED)), height_m=60)
    assert ground == Ground(gsd_m=0.03, gsd_error=0.0, source="argument", height_m=60.0, pitch_deg=-90.0)


def test_a_given_height_without_a_focal_length_gives_no_metres() -> None:
    ground = read_ground(blank((400, 300)), height_m=25)
    assert ground == Ground(height_m=25.0, warnings=(WarningCode.UNKNOWN_CAMERA,))
    assert "Pass the metres per pixel" in WARNING_MESSAGES[WarningCode.UNKNOWN_CAMERA]


def test_a_given_height_needs_no_pitch() -> None:
    # 35 mm equivalent of a 4:3 camera: 26 * 500 / 43.267 = 300.46 px
    ground = read_ground(jpeg((400, 300), exif={EQUIVALENT: 26}), height_m=30)
    assert ground.gsd_m == pytest.approx(30 / 300.46, rel=1e-3)
    assert (ground.source, ground.gsd_error, ground.warnings) == ("argument", 0.05, ())


@pytest.mark.parametrize("value", [0.0, -1.0, math.nan, math.inf, -math.inf, 1e-320, 1e300])
@pytest.mark.parametrize("name", ["gsd_m", "height_m"])
def test_an_implausible_argument_is_refused_with_its_value(name: str, value: float) -> None:
    with pytest.raises(ConfigurationError, match=r"metres.*must be above 0.*not .*Correct the value"):
        read_ground(b"", **{name: value})


def test_metres_per_pixel_and_a_height_exclude_each_other() -> None:
    with pytest.raises(ConfigurationError, match=r"0\.02.*30 m.*Pass one of them"):
        check_scale(0.02, 30)
    check_scale(0.02, None)
    check_scale(None, 30)
    check_scale(None, None)


def test_the_ground_of_an_array_comes_from_the_argument_alone() -> None:
    assert given_ground(0.02) == Ground(gsd_m=0.02, gsd_error=0.0, source="argument")
    assert given_ground(None) == UNKNOWN_GROUND
    with pytest.raises(ConfigurationError, match="must be above 0"):
        given_ground(-0.02)


# Heights


def test_height_above_takeoff_gives_metres_with_a_warning() -> None:
    ground = read_ground(jpeg((4000, 3000), xmp=dji_xmp(more=CALIBRATED)))
    assert ground == Ground(
        gsd_m=0.02,
        gsd_error=0.25,
        source="height",
        height_m=40.0,
        pitch_deg=-90.0,
        warnings=(WarningCode.HEIGHT_ABOVE_TAKEOFF,),
    )


def test_autel_writes_the_namespace_of_dji_under_another_prefix() -> None:
    xmp = dji_xmp(prefix="drone", more='drone:CalibratedFocalLength="2000"')
    assert read_ground(jpeg((4000, 3000), xmp=xmp)).gsd_m == 0.02


def test_a_known_prefix_of_another_namespace_is_not_read() -> None:
    xmp = dji_xmp(more=CALIBRATED).replace(b"http://www.dji.com/drone-dji/1.0/", b"http://example.org/")
    assert read_ground(jpeg((4000, 3000), xmp=xmp)) == UNKNOWN_GROUND


def test_dji_tags_are_read_as_elements() -> None:
    elements = (
        "<drone-dji:RelativeAltitude>+25.10</drone-dji:RelativeAltitude>"
        "<drone-dji:GimbalPitchDegree> -88.50 </drone-dji:GimbalPitchDegree>"
        "<drone-dji:CalibratedFocalLength>2510</drone-dji:CalibratedFocalLength>"
    )
    ground = read_ground(jpeg((4000, 3000), xmp=xmp_bytes(DJI, elements=elements)))
    assert (ground.gsd_m, ground.pitch_deg) == (0.01, -88.5)


LASER = 'drone-dji:LRFStatus="{}" drone-dji:LRFTargetDistance="{}" ' + CALIBRATED


def test_a_laser_range_is_slant_and_wins_over_heights() -> None:
    # 50 m along an axis 75 degrees below the horizon: 50 * sin 75 = 48.296 m
    ground = read_ground(jpeg((4000, 3000), xmp=dji_xmp(pitch="-75.0", more=LASER.format("Normal", "50.000"))))
    assert ground.height_m == pytest.approx(48.296, abs=1e-3)
    assert ground.gsd_m == pytest.approx(0.024148, abs=1e-6)
    assert (ground.source, ground.gsd_error, ground.warnings) == ("laser", 0.03, ())


@pytest.mark.parametrize(("status", "distance"), [("TooFar", "0"), ("TooFar", "50"), ("Normal", "0"), ("", "50")])
def test_a_laser_without_a_measurement_is_not_used(status: str, distance: str) -> None:
    ground = read_ground(jpeg((4000, 3000), xmp=dji_xmp(more=LASER.format(status, distance))))
    assert (ground.gsd_m, ground.source, ground.gsd_error) == (0.02, "height", 0.25)


@pytest.mark.parametrize(
    "height", ["0", "+0.00", "-12.5", "nan", "inf", "abc", "", "1e999", "9" * 100, "40,5", "130 ft"]
)
def test_a_height_of_zero_below_or_nonsense_is_unknown(height: str) -> None:
    ground = read_ground(jpeg((4000, 3000), xmp=dji_xmp(height=height, more=CALIBRATED)))
    assert ground == Ground(pitch_deg=-90.0)


def test_the_altitude_above_the_sea_is_never_a_height() -> None:
    exif = Image.Exif()
    exif.get_ifd(0x8825)[6] = IFDRational(120, 1)
    xmp = xmp_bytes(DJI, f'drone-dji:AbsoluteAltitude="+120.00" drone-dji:GimbalPitchDegree="-90" {CALIBRATED}')
    buffer = BytesIO()
    Image.new("L", (400, 300)).save(buffer, "JPEG", exif=exif, xmp=xmp)
    assert read_ground(buffer.getvalue()) == Ground(pitch_deg=-90.0)


def test_parrot_writes_fractions_and_a_height_above_ground() -> None:
    # 5242880/131072 = 40 m; 527/100 mm on ANAFI Ai's pixels of 0.82951 um: 6353.2 px; 40 / 6353.2
    elements = (
        "<Camera:AboveGroundAltitude>5242880/131072</Camera:AboveGroundAltitude>"
        "<Camera:PerspectiveFocalLength>527/100</Camera:PerspectiveFocalLength>"
        "<Camera:PerspectiveFocalLengthUnits>mm</Camera:PerspectiveFocalLengthUnits>"
        "<Camera:Pitch>38.011101</Camera:Pitch>"
        "<drone-parrot:CameraPitchDegree>-88.0</drone-parrot:CameraPitchDegree>"
    )
    exif = {MODEL: "ANAFIAI", WIDTH: 8000, HEIGHT: 6000}
    ground = read_ground(jpeg((800, 600), exif=exif, xmp=xmp_bytes(f"{PIX4D} {PARROT}", elements=elements)))
    assert ground.gsd_m == pytest.approx(0.0062960 * 10, rel=1e-4)
    assert (ground.source, ground.gsd_error, ground.pitch_deg, ground.warnings) == ("height", 0.1, -88.0, ())


def test_skydio_nests_its_members() -> None:
    # 30 m / 2400 px; the frame has twice the centre's coordinates
    elements = (
        "<drone-skydio:RelativeAltitude>30.0</drone-skydio:RelativeAltitude>"
        '<drone-skydio:CameraOrientationNED rdf:parseType="Resource"><drone-skydio:Pitch>-89.2</drone-skydio:Pitch>'
        "<drone-skydio:Roll>0.1</drone-skydio:Roll></drone-skydio:CameraOrientationNED>"
        '<drone-skydio:CalibratedFocalLength rdf:parseType="Resource"><drone-skydio:X>2400</drone-skydio:X>'
        "<drone-skydio:Y>2500</drone-skydio:Y></drone-skydio:CalibratedFocalLength>"
        "<drone-skydio:CalibratedOpticalCenter><rdf:Description><drone-skydio:X>2027.5</drone-skydio:X>"
        "<drone-skydio:Y>1519.5</drone-skydio:Y></rdf:Description></drone-skydio:CalibratedOpticalCenter>"
    )
    ground = read_ground(jpeg((4056, 3040), xmp=xmp_bytes(SKYDIO, elements=elements)))
    assert (ground.gsd_m, ground.pitch_deg, ground.gsd_error) == (0.0125, -89.2, 0.25)


def test_skydio_orientation_is_read_from_attributes_of_the_structure() -> None:
    elements = '<drone-skydio:CameraOrientationNED drone-skydio:Roll="1.5" drone-skydio:Pitch="-40.0"/>'
    ground = read_ground(jpeg((400, 300), xmp=xmp_bytes(SKYDIO, elements=elements)))
    assert ground == Ground(pitch_deg=-40.0, warnings=(WarningCode.OBLIQUE,))


def pix4d_xmp(*, pitch: str = "0", roll: str = "0", namespace: str = PIX4D, elements: str = "") -> bytes:
    attributes = (
        f'Camera:AboveGroundAltitude="100.0" Camera:Pitch="{pitch}" Camera:Roll="{roll}"'
        ' Camera:PerspectiveFocalLength="5000" Camera:PerspectiveFocalLengthUnits="pixels"'
    )
    return xmp_bytes(namespace, attributes, elements)


@pytest.mark.parametrize("namespace", [PIX4D, PIX4D.replace("1.0/", "1.0")])
def test_sensefly_and_micasense_look_straight_down_at_pitch_zero(namespace: str) -> None:
    ground = read_ground(jpeg((4000, 3000), xmp=pix4d_xmp(pitch="-5.0", namespace=namespace)))
    assert (ground.gsd_m, ground.gsd_error, ground.pitch_deg) == (0.02, 0.1, -85.0)


def test_a_rolled_aircraft_looks_aside() -> None:
    ground = read_ground(jpeg((4000, 3000), xmp=pix4d_xmp(roll="25")))
    assert ground == Ground(height_m=100.0, pitch_deg=-65.0, warnings=(WarningCode.OBLIQUE,))


@pytest.mark.parametrize("name", ["AltimeterCalculatedAGL", "AltimeterCalcuatedAGL"])
def test_the_altimeter_of_sentera_wins_over_the_height_of_the_autopilot(name: str) -> None:
    elements = f'<Sentera:{name} xmlns:Sentera="http://www.sentera.com/xmp/">50.0</Sentera:{name}>'
    assert read_ground(jpeg((4000, 3000), xmp=pix4d_xmp(elements=elements))).gsd_m == 0.01


def test_a_focal_length_in_millimetres_uses_the_resolution_of_the_focal_plane() -> None:
    # MicaSense: 5.4 mm at 266.667 px per mm (unit 4) = 1440 px; 72 m / 1440 px
    attributes = (
        'Camera:AboveGroundAltitude="72" Camera:Pitch="1" Camera:PerspectiveFocalLength="5.4"'
        ' Camera:PerspectiveFocalLengthUnits="mm"'
    )
    exif = {PLANE_RESOLUTION: IFDRational(800, 3), PLANE_UNIT: 4, WIDTH: 1280, HEIGHT: 960}
    assert read_ground(jpeg((1280, 960), exif=exif, xmp=xmp_bytes(PIX4D, attributes))).gsd_m == pytest.approx(0.05)


# Angle


@pytest.mark.parametrize(("pitch", "oblique"), [("-70", False), ("-110", False), ("-69.9", True), ("0", True)])
def test_metres_are_refused_beyond_20_degrees_off_straight_down(pitch: str, oblique: bool) -> None:
    ground = read_ground(jpeg((4000, 3000), xmp=dji_xmp(pitch=pitch, more=CALIBRATED)))
    assert (ground.gsd_m is None) == oblique
    assert (WarningCode.OBLIQUE in ground.warnings) == oblique
    assert (ground.pitch_deg, ground.height_m) == (float(pitch), 40.0)


@pytest.mark.parametrize("argument", [{"gsd_m": 0.02}, {"height_m": 30.0}])
def test_an_oblique_photograph_stays_oblique_whatever_is_given(argument: dict[str, float]) -> None:
    ground = read_ground(jpeg((400, 300), xmp=dji_xmp(pitch="-30", more=CALIBRATED)), **argument)
    assert (ground.gsd_m, ground.source, ground.warnings) == (None, "unknown", (WarningCode.OBLIQUE,))


@pytest.mark.parametrize("pitch", ["", "nan", "-270", "down"])
def test_a_height_without_an_angle_gives_no_metres(pitch: str) -> None:
    xmp = dji_xmp(pitch=pitch, more=LASER.format("Normal", "50"))
    assert read_ground(jpeg((400, 300), xmp=xmp)) == Ground(height_m=40.0, warnings=(WarningCode.UNKNOWN_PITCH,))
    assert read_ground(jpeg((400, 300), xmp=xmp), gsd_m=0.02).gsd_m == 0.02


# Focal length: 40 m above the ground, straight down


def gsd_of(size: tuple[int, int], exif: dict[int, object], more: str = "") -> float | None:
    return read_ground(jpeg(size, exif=exif, xmp=dji_xmp(more=more))).gsd_m


FC300S: dict[int, object] = {MODEL: "FC300S\0\0\0\0", FOCAL: IFDRational(361, 100), EQUIVALENT: 20}
# 3.61 mm on pixels of 6.3175 mm / 4000 = 1.57938 um: 2285.7 px; 40 / 2285.7
FC300S_GSD = 0.017500


@pytest.mark.parametrize("size", [(4000, 3000), (4000, 2250)])
def test_the_table_of_sensors_gives_the_focal_length(size: tuple[int, int]) -> None:
    assert gsd_of(size, {**FC300S, WIDTH: size[0], HEIGHT: size[1]}) == pytest.approx(FC300S_GSD, rel=1e-4)


def test_a_photograph_cut_at_its_sides_has_the_pixels_of_the_full_frame() -> None:
    # Phantom 4 Pro, 5472x3648, in 4:3: 8.8 mm on pixels of 2.34527 um = 3752.2 px; 40 / 3752.2
    exif = {MODEL: "FC6310", FOCAL: IFDRational(88, 10), EQUIVALENT: 24, WIDTH: 4864, HEIGHT: 3648}
    assert gsd_of((1216, 912), exif) == pytest.approx(4 * 0.010660, rel=1e-3)


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
@pytest.mark.parametrize("swapped", [False, True])
def test_a_smaller_copy_has_larger_pixels_also_rotated(orientation: int, swapped: bool) -> None:
    exif = {**FC300S, WIDTH: 4000, HEIGHT: 3000, ORIENTATION: orientation}
    size = (375, 500) if swapped else (500, 375)
    assert gsd_of(size, exif) == pytest.approx(8 * FC300S_GSD, rel=1e-4)


@pytest.mark.parametrize("size", [(300, 300), (400, 250), (960, 736)])
def test_a_cropped_or_squeezed_copy_gives_no_metres(size: tuple[int, int]) -> None:
    ground = read_ground(jpeg(size, exif={**FC300S, WIDTH: 4000, HEIGHT: 3000}, xmp=dji_xmp()))
    assert (ground.gsd_m, ground.warnings) == (None, (WarningCode.UNKNOWN_CAMERA,))


CENTRE = 'drone-dji:CalibratedOpticalCenterX="2000.0" drone-dji:CalibratedOpticalCenterY="1500.0"'


@pytest.mark.parametrize(
    ("size", "exif", "more", "expected"),
    [
        pytest.param((4000, 3000), {}, "", 0.02, id="full frame"),
        pytest.param((400, 300), {WIDTH: 4000, HEIGHT: 3000}, "", 0.2, id="copy with the old size in EXIF"),
        pytest.param((400, 300), {WIDTH: 400, HEIGHT: 300}, CENTRE, 0.2, id="copy with its own size in EXIF"),
        pytest.param((400, 300), {}, CENTRE, 0.2, id="copy without EXIF"),
        pytest.param((400, 225), {WIDTH: 4000, HEIGHT: 2250}, CENTRE, 0.2, id="copy of a 16:9 photograph"),
        pytest.param((400, 300), {MODEL: "FC300S"}, "", 0.2, id="copy of a camera in the table"),
    ],
)
def test_a_calibrated_focal_length_is_in_pixels_of_the_full_frame(
    size: tuple[int, int], exif: dict[int, object], more: str, expected: float
) -> None:
    assert gsd_of(size, exif, f"{CALIBRATED} {more}") == pytest.approx(expected)


def test_a_calibration_wins_over_the_table() -> None:
    assert gsd_of((4000, 3000), {**FC300S, WIDTH: 4000, HEIGHT: 3000}, CALIBRATED) == 0.02


def test_the_calibration_of_the_lens_replaces_one_of_zero() -> None:
    more = (
        'drone-dji:CalibratedFocalLength="0.000000"'
        ' drone-dji:DewarpData="2022-06-08;2500.5,2499.2,-8.1,-7.4,-0.112,0.012,0,0,-0.026"'
    )
    assert gsd_of((4000, 3000), {}, more) == pytest.approx(40 / 2500.5, rel=1e-4)


def test_digital_zoom_lengthens_the_focal_length() -> None:
    exif = {**FC300S, WIDTH: 4000, HEIGHT: 3000, ZOOM: IFDRational(2, 1)}
    assert gsd_of((4000, 3000), exif) == pytest.approx(FC300S_GSD / 2, rel=1e-4)
    assert gsd_of((4000, 3000), exif, CALIBRATED) == pytest.approx(0.01)


@pytest.mark.parametrize("zoom", [IFDRational(0, 0), IFDRational(0, 1), IFDRational(1, 1), IFDRational(9999, 1)])
def test_no_or_an_implausible_zoom_changes_nothing(zoom: IFDRational) -> None:
    exif = {**FC300S, WIDTH: 4000, HEIGHT: 3000, ZOOM: zoom}
    assert gsd_of((4000, 3000), exif) == pytest.approx(FC300S_GSD, rel=1e-4)


@pytest.mark.parametrize(
    ("size", "frame"),
    [
        pytest.param((4000, 3000), (4000, 3000), id="4:3"),
        pytest.param((4000, 2250), (4000, 3000), id="16:9 of a 4:3 sensor"),
        pytest.param((3000, 3000), (4000, 3000), id="square of a 4:3 sensor"),
        pytest.param((4500, 3000), (4500, 3000), id="3:2"),
    ],
)
def test_a_35_mm_equivalent_compares_the_diagonal_of_the_full_frame(
    size: tuple[int, int], frame: tuple[int, int]
) -> None:
    # film is 36x24 mm, 43.267 mm across; the wrong rule of 36 mm for the width would be 4 % off at 4:3
    focal_px = 24 * math.hypot(*frame) / 43.2666
    ground = read_ground(jpeg(size, exif={EQUIVALENT: 24, WIDTH: size[0], HEIGHT: size[1]}, xmp=dji_xmp()))
    assert ground.gsd_m == pytest.approx(40 / focal_px, rel=1e-4)


def test_the_table_knows_the_full_frame_of_a_35_mm_equivalent() -> None:
    # 4:3 photograph of the 3:2 sensor of a Mavic 2 Pro, without the focal length: 28 * 6576.6 / 43.267 = 4256.0 px
    exif = {MODEL: "L1D-20c", EQUIVALENT: 28, WIDTH: 4864, HEIGHT: 3648}
    assert gsd_of((4864, 3648), exif) == pytest.approx(40 / 4256.0, rel=1e-3)


def test_a_35_mm_equivalent_with_digital_zoom_is_ambiguous() -> None:
    assert gsd_of((400, 300), {EQUIVALENT: 48, ZOOM: IFDRational(2, 1)}) is None


def test_contradicting_focal_lengths_give_no_metres() -> None:
    # 2000 px in a photograph of 400 px against 24 mm, which are 277 px: the copy's size was written over the old one
    exif = {EQUIVALENT: 24, WIDTH: 400, HEIGHT: 300}
    assert gsd_of((400, 300), exif, CALIBRATED) is None
    assert gsd_of((400, 300), {WIDTH: 400, HEIGHT: 300}, CALIBRATED) == 0.02


def test_a_thermal_camera_does_not_have_the_sensor_of_its_colour_camera() -> None:
    # M2EA: 9 mm, 38 mm equivalent; the colour sensor of the same model would give 899 px instead of 720
    exif = {MODEL: "MAVIC2-ENTERPRISE-ADVANCED", FOCAL: IFDRational(9, 1), EQUIVALENT: 38, WIDTH: 640, HEIGHT: 512}
    assert gsd_of((640, 512), exif) == pytest.approx(40 / (38 * math.hypot(682.667, 512) / 43.2666), rel=1e-4)


def test_a_fisheye_lens_has_no_single_scale() -> None:
    xmp = pix4d_xmp(elements="<Camera:ModelType>fisheye</Camera:ModelType>")
    assert read_ground(jpeg((4000, 3000), xmp=xmp)).warnings == (WarningCode.UNKNOWN_CAMERA,)


@pytest.mark.parametrize("focal", ["0", "-2000", "nan", "3", "1e9"])
def test_an_implausible_focal_length_gives_no_metres(focal: str) -> None:
    more = f'drone-dji:CalibratedFocalLength="{focal}"'
    ground = read_ground(jpeg((4000, 3000), xmp=dji_xmp(more=more)))
    assert ground == Ground(height_m=40.0, pitch_deg=-90.0, warnings=(WarningCode.UNKNOWN_CAMERA,))


def test_exif_that_only_the_xmp_has_kept_is_read() -> None:
    # exports as PNG drop EXIF and repeat it as XMP
    namespaces = f'{DJI} xmlns:exif="http://ns.adobe.com/exif/1.0/" xmlns:tiff="http://ns.adobe.com/tiff/1.0/"'
    attributes = (
        'drone-dji:RelativeAltitude="+40.00" drone-dji:GimbalPitchDegree="-90.00" tiff:Model="FC300S"'
        ' exif:FocalLength="361/100" exif:PixelXDimension="4000" exif:PixelYDimension="3000"'
    )
    ground = read_ground(jpeg((400, 300), xmp=xmp_bytes(namespaces, attributes)))
    assert ground.gsd_m == pytest.approx(10 * FC300S_GSD, rel=1e-4)


# Containers


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "MPO"])
def test_every_format_with_metadata_is_read(kind: str) -> None:
    exif, xmp = exif_bytes({**FC300S, WIDTH: 4000, HEIGHT: 3000}), dji_xmp()
    buffer = BytesIO()
    options: dict[str, object] = {"exif": exif, "xmp": xmp}
    if kind == "PNG":
        text = b"XML:com.adobe.xmp\0\0\0\0\0" + xmp
        options = {"exif": exif}
    elif kind == "TIFF":
        directory = Image.Exif()
        directory.load(exif)
        directory[700] = xmp
        options = {"exif": directory}
    elif kind == "MPO":
        options |= {"save_all": True, "append_images": [Image.new("RGB", (40, 30))]}
    Image.new("RGB", (400, 300)).save(buffer, kind, **options)
    data = buffer.getvalue()
    if kind == "PNG":
        data = data[:33] + png_chunk(b"iTXt", text) + data[33:]
    assert read_ground(data).gsd_m == pytest.approx(10 * FC300S_GSD, rel=1e-4)


def png_chunk(name: bytes, content: bytes) -> bytes:
    return len(content).to_bytes(4, "big") + name + content + zlib.crc32(name + content).to_bytes(4, "big")


def test_no_pixel_is_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", lambda _: pytest.fail("decoded"))
    for kind in ("JPEG", "PNG", "WEBP", "TIFF"):
        assert read_ground(blank((40, 30), kind)) == UNKNOWN_GROUND


# GeoTIFF


def geotiff(
    *,
    scale: tuple[float, ...] | None = (0.05, 0.05, 0.0),
    keys: dict[int, int],
    transformation: object = None,
    exif: dict[int, object] | None = None,
) -> bytes:
    tags = ImageFileDirectory_v2()
    if exif:
        tags[0x8769] = exif
    if scale:
        tags[33550], tags.tagtype[33550] = scale, 12
        tags[33922], tags.tagtype[33922] = (0.0, 0.0, 0.0, 500000.0, 4649776.0, 0.0), 12
    if transformation:
        tags[34264], tags.tagtype[34264] = transformation, 12
    entries = [number for key, value in sorted(keys.items()) for number in (key, 0, 1, value)]
    tags[34735], tags.tagtype[34735] = (1, 1, 0, len(keys), *entries), 3
    buffer = BytesIO()
    Image.new("L", (40, 30)).save(buffer, "TIFF", tiffinfo=tags)
    return buffer.getvalue()


UTM = {1024: 1, 1025: 1, 3072: 32633, 3076: 9001}


def test_a_projected_geotiff_in_metres_gives_its_pixel_size() -> None:
    ground = read_ground(geotiff(keys=UTM))
    assert ground == Ground(gsd_m=0.05, gsd_error=0.0, source="georeference")


def test_a_rotated_geotiff_gives_the_size_of_its_pixels() -> None:
    # 0.08 m pixels turned by 30 degrees
    cosine, sine = 0.08 * math.cos(math.pi / 6), 0.08 * math.sin(math.pi / 6)
    matrix = (cosine, sine, 0.0, 5e5, sine, -cosine, 0.0, 4e6, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0)
    assert read_ground(geotiff(scale=None, keys=UTM, transformation=matrix)).gsd_m == pytest.approx(0.08)


@pytest.mark.parametrize(
    "keys",
    [
        pytest.param({1024: 2, 2048: 4326}, id="degrees"),
        pytest.param({1024: 1, 3072: 3857, 3076: 9001}, id="web mercator"),
        pytest.param({1024: 1, 3072: 3395, 3076: 9001}, id="world mercator"),
        pytest.param({1024: 1, 3072: 2263, 3076: 9003}, id="US feet"),
        pytest.param({1024: 1, 3072: 2263}, id="a system whose unit is not said"),
        pytest.param({1024: 1, 3072: 32767, 3075: 7, 3076: 9001}, id="user-defined Mercator"),
        pytest.param({1024: 3, 3072: 32633, 3076: 9001}, id="geocentric"),
        pytest.param({}, id="no keys"),
    ],
)
def test_a_geotiff_without_ground_metres_gives_none(keys: dict[int, int]) -> None:
    assert read_ground(geotiff(keys=keys)) == UNKNOWN_GROUND


@pytest.mark.parametrize("keys", [{1024: 1, 3072: 25832}, {1024: 1, 3072: 32767, 3075: 1, 3076: 9001}])
def test_zones_of_utm_and_own_transverse_mercator_systems_have_metres(keys: dict[int, int]) -> None:
    assert read_ground(geotiff(keys=keys)).gsd_m == 0.05


@pytest.mark.parametrize("scale", [(0.0, 0.0, 0.0), (math.nan, 1.0, 0.0), (math.inf, 1.0, 0.0), (1e30, 1e30, 0.0)])
def test_an_impossible_pixel_size_is_unknown(scale: tuple[float, ...]) -> None:
    assert read_ground(geotiff(scale=scale, keys=UTM)) == UNKNOWN_GROUND


def test_the_order_of_arguments_and_georeference() -> None:
    data = geotiff(keys=UTM)
    assert read_ground(data, gsd_m=0.07).source == "argument"
    # an orthophoto has no focal length, so a height cannot replace what its georeference says
    assert read_ground(data, height_m=50) == Ground(gsd_m=0.05, gsd_error=0.0, source="georeference", height_m=50.0)
    # 24 mm at 40x30 px: 27.735 px
    ground = read_ground(geotiff(keys=UTM, exif={EQUIVALENT: 24}), height_m=50)
    assert ground.gsd_m == pytest.approx(50 / 27.735, rel=1e-4)
    assert ground.source == "argument"


# Hostile metadata

BILLION_LAUGHS = (
    b'<?xml version="1.0"?><!DOCTYPE lolz [<!ENTITY a "ha">'
    + b"".join(b'<!ENTITY %c "%s">' % (98 + i, (b"&%c;" % (97 + i)) * 10) for i in range(10))
    + b"]><x:xmpmeta>&k;</x:xmpmeta>"
)


@pytest.mark.parametrize(
    "xmp",
    [
        pytest.param(BILLION_LAUGHS, id="billion laughs"),
        pytest.param(b"<!DOCTYPE a [<!ENTITY b 'c'>]>" + dji_xmp(), id="DOCTYPE before the packet"),
        pytest.param(BILLION_LAUGHS.decode().encode("utf-16"), id="billion laughs in UTF-16"),
        pytest.param(dji_xmp().replace(b"+40.00", b"&height;"), id="undefined entity"),
        pytest.param(dji_xmp().replace(b"</rdf:RDF>", b""), id="element left open"),
        pytest.param(b"\xff\xfe\0\xd8" * 50, id="not text"),
        pytest.param(b"<a>" * 10_000, id="deep and open"),
        pytest.param(b"<a>" * 9_000 + b"</a>" * 9_000, id="deep"),
        pytest.param(b"<x:xmpmeta xmlns:x='adobe:ns:meta/'></x:xmpmeta>", id="empty"),
        pytest.param(b"</x:xmpmeta><x:xmpmeta", id="reversed"),
        pytest.param(b"\0", id="a zero byte"),
    ],
)
def test_hostile_or_broken_xmp_is_ignored(xmp: bytes) -> None:
    start = time.perf_counter()
    assert read_ground(jpeg((4000, 3000), exif=FC300S, xmp=xmp)) == UNKNOWN_GROUND
    assert time.perf_counter() - start < 5


def test_a_doctype_is_refused_even_where_the_rest_is_right() -> None:
    xmp = dji_xmp(more=CALIBRATED).replace(b"<rdf:RDF", b"<!DOCTYPE rdf><rdf:RDF", 1)
    assert read_ground(jpeg((4000, 3000), xmp=xmp)) == UNKNOWN_GROUND


@pytest.mark.parametrize("excess", [0, 1])
def test_xmp_beyond_a_mebibyte_is_ignored(excess: int) -> None:
    xmp = dji_xmp(more=CALIBRATED)
    xmp = xmp.replace(b"</x:xmpmeta>", b"</x:xmpmeta>" + b" " * (2**20 - len(xmp) + excess))
    buffer = BytesIO()
    Image.new("L", (400, 300)).save(buffer, "WEBP", xmp=xmp)
    assert (read_ground(buffer.getvalue()).gsd_m is None) == bool(excess)


def test_a_long_number_is_read_in_linear_time() -> None:
    start = time.perf_counter()
    ground = read_ground(jpeg((400, 300), xmp=dji_xmp(height="9" * 60_000 + "x", more=CALIBRATED)))
    assert ground == Ground(pitch_deg=-90.0)
    assert time.perf_counter() - start < 5


def test_padding_and_another_packet_behind_the_xmp_do_no_harm() -> None:
    xmp = dji_xmp(more=CALIBRATED)
    assert read_ground(jpeg((4000, 3000), xmp=xmp + b"\0" * 100)).gsd_m == 0.02
    assert read_ground(jpeg((4000, 3000), xmp=xmp + xmp_bytes(PARROT))).gsd_m == 0.02


@pytest.mark.parametrize(
    "exif",
    [
        {FOCAL: "long", EQUIVALENT: "wide", WIDTH: "4000", HEIGHT: b"3000"},
        {FOCAL: (1, 2), EQUIVALENT: (24, 35), WIDTH: (1, 2), HEIGHT: 0},
        {FOCAL: IFDRational(0, 0), EQUIVALENT: 0, WIDTH: 0, HEIGHT: 0},
        {MODEL: b"\xff\xfe", FOCAL: IFDRational(-361, 100), PLANE_RESOLUTION: IFDRational(1, 0), PLANE_UNIT: 77},
    ],
)
def test_odd_values_in_exif_give_no_metres(exif: dict[int, object]) -> None:
    ground = read_ground(jpeg((400, 300), exif=exif, xmp=dji_xmp()))
    assert ground == Ground(height_m=40.0, pitch_deg=-90.0, warnings=(WarningCode.UNKNOWN_CAMERA,))


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data:UserWarning")
def test_broken_exif_does_not_hide_the_xmp() -> None:
    data = jpeg((4000, 3000), exif=FC300S, xmp=dji_xmp(more=CALIBRATED))
    broken = data.replace(b"MM\0*\0\0\0\x08", b"MM\0*\xff\xff\xff\x08").replace(b"II*\0\x08\0", b"II*\0\xff\xff")
    assert broken != data
    assert read_ground(broken).gsd_m == 0.02


@pytest.mark.parametrize("data", [b"", b"text", b"\xff\xd8", blank((40, 30))[:50], b"II*\0\xff\xff\xff\xff"])
def test_data_that_is_not_an_image_has_an_unknown_ground(data: bytes) -> None:
    assert read_ground(data) == UNKNOWN_GROUND


SEEDS = (
    jpeg((40, 30), exif={**FC300S, WIDTH: 4000, HEIGHT: 3000}, xmp=dji_xmp(more=CALIBRATED)),
    geotiff(keys=UTM),
    blank((40, 30), "PNG"),
)


@settings(max_examples=300, deadline=None)
@given(
    seed=st.sampled_from(SEEDS),
    changes=st.lists(st.tuples(st.integers(0, 1500), st.binary(min_size=1, max_size=4)), max_size=8),
    end=st.integers(1, 3000),
)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_no_damage_to_a_file_raises(seed: bytes, changes: list[tuple[int, bytes]], end: int) -> None:
    data = bytearray(seed)
    for position, value in changes:
        data[position : position + len(value)] = value
    assert_consistent(read_ground(bytes(data[:end])))


TEXT = st.text(st.characters(exclude_characters='<&"', exclude_categories=("C",)), max_size=70)
VALUE = st.one_of(st.floats().map(str), st.integers().map(str), st.sampled_from(["-90", "40", "2000", "1/0"]), TEXT)


@settings(max_examples=300, deadline=None)
@given(height=VALUE, pitch=VALUE, focal=VALUE, distance=VALUE, x=VALUE, y=VALUE)
def test_no_value_of_a_tag_raises(height: str, pitch: str, focal: str, distance: str, x: str, y: str) -> None:
    more = (
        f'drone-dji:CalibratedFocalLength="{focal}" drone-dji:LRFStatus="Normal"'
        f' drone-dji:LRFTargetDistance="{distance}"'
        f' drone-dji:CalibratedOpticalCenterX="{x}" drone-dji:CalibratedOpticalCenterY="{y}"'
    )
    assert_consistent(read_ground(jpeg((400, 300), xmp=dji_xmp(height=height, pitch=pitch, more=more))))


@settings(max_examples=100, deadline=None)
@given(
    height=st.floats(1, 500),
    focal=st.floats(400, 8000),
    shrink=st.sampled_from([1, 2, 4, 5, 8, 10]),
)
def test_metres_per_pixel_grow_with_height_and_shrinking_and_fall_with_the_focal_length(
    height: float, focal: float, shrink: int
) -> None:
    more = f'drone-dji:CalibratedFocalLength="{focal}"'
    size = (4000 // shrink, 3000 // shrink)
    data = jpeg(size, exif={WIDTH: 4000, HEIGHT: 3000}, xmp=dji_xmp(height=f"+{height}", more=more))
    ground = read_ground(data)
    expected = height * shrink / focal
    assert ground.gsd_m == pytest.approx(expected, rel=1e-4) if focal >= 800 else ground.gsd_m is None


def assert_consistent(ground: Ground) -> None:
    Ground.model_validate(ground.model_dump())
    assert (ground.gsd_m is None) == (ground.gsd_error is None) == (ground.source == "unknown")


# Real photographs


@pytest.mark.parametrize("name", ["DJI_0018.JPG", "DJI_0025.JPG", "DJI_0030.JPG", "DJI_0034.JPG"])
def test_real_dji_photographs_have_their_known_resolution(real_data: Path, name: str) -> None:
    ground = read_ground((real_data / "dji_brighton" / name).read_bytes())
    assert ground.gsd_m == pytest.approx(0.0172, rel=0.03)
    assert (ground.source, ground.gsd_error, ground.pitch_deg) == ("height", 0.25, -89.9)
    assert ground.warnings == (WarningCode.HEIGHT_ABOVE_TAKEOFF,)


@pytest.mark.parametrize("folder", ["odm_places", "swindale_dev"])
def test_real_photographs_without_a_height_have_an_unknown_ground(real_data: Path, folder: str) -> None:
    paths = sorted((real_data / folder).glob("*.jpg"))
    assert paths
    assert {read_ground(path.read_bytes()) for path in paths} == {UNKNOWN_GROUND}


@pytest.mark.parametrize("value", ["0.02", [0.02], np.array([0.02]), True], ids=repr)
def test_scale_that_is_not_a_number_is_refused(value: object) -> None:
    with pytest.raises(TypeError, match=r"gsd_m is .* of type .*\. Pass a number in metres\."):
        given_ground(value)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"height_m is"):
        check_scale(None, value)  # type: ignore[arg-type]


def test_numpy_scalar_is_a_scale() -> None:
    assert given_ground(np.float32(0.5)).gsd_m == 0.5  # type: ignore[arg-type]
