"""Class tables in `classes.csv`: what is read, what is refused, and how truths are read accordingly."""

from pathlib import Path

import numpy as np
import pytest

from droneseg.core.class_files import MaskColours, read_classes, write_classes
from droneseg.core.classes import DEFAULT_CLASSES, ClassTable, Role, SegmentationClass
from droneseg.core.errors import ConfigurationError, InvalidIdsError
from support.images import png

HEAD = "id,name,r,g,b,role\n0,void,0,0,0,\n"


def read(tmp_path: Path, text: str) -> MaskColours:
    file = tmp_path / "classes.csv"
    file.write_text(text, encoding="utf-8")
    return read_classes(file)


def problems(tmp_path: Path, text: str) -> list[str]:
    with pytest.raises(ConfigurationError, match="is not a valid class table") as error:
        read(tmp_path, text)
    return [line.removeprefix("  - ") for line in str(error.value).splitlines()[1:]]


def test_names_may_have_spaces_umlauts_and_commas(tmp_path: Path) -> None:
    colours = read(
        tmp_path,
        HEAD + '2,"car, parked",7,8,9,Moving\n1,paved road,1,2,3,landing\n3,Straße [nass] | Öl,4,5,6,\n'
        ",,255,255,255,ignore\n,,255,255,255,ignore\n",
    )
    assert colours == MaskColours(
        ClassTable(
            (
                SegmentationClass(0, "void", (0, 0, 0)),
                SegmentationClass(1, "paved road", (1, 2, 3), Role.LANDING),
                SegmentationClass(2, "car, parked", (7, 8, 9), Role.MOVING),
                SegmentationClass(3, "Straße [nass] | Öl", (4, 5, 6)),
            )
        ),
        ((255, 255, 255),),
    )
    write_classes(tmp_path / "copy.csv", colours)
    assert read_classes(tmp_path / "copy.csv") == colours


def test_forty_classes_without_roles_are_read(tmp_path: Path) -> None:
    rows = "".join(f"{number},class {number},{number},0,0\n" for number in range(40))
    assert len(read(tmp_path, f"id,name,r,g,b\n{rows}").classes) == 40


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ("", ["the number of classes is 1; it must be 2 to 64"]),
        ("1,road,1,2,3,landing\n1,car,1,2,4,\n", ["the id 1 occurs more than once"]),
        ("3,road,1,2,3,landing\n", ["no class has the id 1, 2; ids are the numbers from 0, the background"]),
        ("1,road,1,2,3,\n2,road,1,2,4,\n", ["the name road occurs more than once"]),
        ("1,road,1,2,3,\n2,car,1,2,3,\n", ["the colour (1, 2, 3) occurs more than once"]),
        ("1,ignore,1,2,3,\n", ["ignore is not a class; a colour of unlabelled pixels has the role ignore and no name"]),
        ("1,background,1,2,3,\n", ["background has the id 1; in nnU-Net it is 0. Choose another name"]),
        (
            "1,road,1,2,3,landing\n,,1,2,3,ignore\n",
            ["the colour (1, 2, 3) has the role ignore, but is also that of road"],
        ),
        (
            f"1,{'x' * 65},1,2,3,\n",
            ["the name xxxxxxxxxxxxxxxxxxxx... has 65 characters; at most 64 are possible"],
        ),
        (
            '1,"ro\nad",1,2,3,\n',
            ["the name 'ro\\nad' is empty, or has spaces at its ends or characters that cannot be printed"],
        ),
        (
            "1,road,1,2,3,lava\n2,car,1,2,300,\n3,,1,2,5,\nx,roof,1,2,6,\n",
            [
                "line 3: 'lava' is not a role; use landing, soft, obstacle, water, moving, ignore, or leave it empty",
                "line 4: 1, 2, 300 is not a colour; use three numbers from 0 to 255",
                "line 5: the name is missing",
                "line 6: 'x' is not an id; use a number from 0",
            ],
        ),
    ],
)
def test_tables_that_are_not_valid_are_refused_with_all_problems(
    tmp_path: Path, rows: str, expected: list[str]
) -> None:
    assert problems(tmp_path, HEAD + rows) == expected


def test_nothing_can_land_on_what_cannot_be_seen(tmp_path: Path) -> None:
    (problem,) = problems(tmp_path, "id,name,r,g,b,role\n0,ground,0,0,0,landing\n1,roof,1,2,3,\n")
    assert problem.startswith("ground has the role landing, but class 0 is also what cannot be seen")


TABLE = """id,name,r,g,b,role
0,background,0,0,0,
1,path,200,180,90,landing
2,pond,20,60,200,water
255,,9,9,9,ignore
,,8,8,8,ignore
"""


@pytest.fixture
def colours(tmp_path: Path) -> MaskColours:
    file = tmp_path / "classes.csv"
    file.write_text(TABLE)
    return read_classes(file)


def test_lines_of_the_role_ignore_give_colours_and_ids_without_a_label(colours: MaskColours, tmp_path: Path) -> None:
    assert colours.classes.names == ("background", "path", "pond")
    assert (colours.ignored, colours.ignored_ids) == (((9, 9, 9), (8, 8, 8)), (255,))
    write_classes(tmp_path / "copy.csv", colours)
    assert read_classes(tmp_path / "copy.csv") == colours


def test_every_encoding_gives_the_ignore_label(colours: MaskColours, tmp_path: Path) -> None:
    file = tmp_path / "mask.png"
    file.write_bytes(png(np.array([[(200, 180, 90), (9, 9, 9), (8, 8, 8), (20, 60, 200)]], np.uint8)))
    assert colours.read(file, "colours").tolist() == [[1, 3, 3, 2]]
    file.write_bytes(png(np.array([[1, 255, 3, 2]], np.uint8)))
    assert colours.read(file, "ids").tolist() == [[1, 3, 3, 2]]
    assert colours.read(file, "labels").tolist() == [[1, 3, 3, 2]]
    file.write_bytes(png(np.array([[1, 254, 3, 2]], np.uint8)))
    with pytest.raises(InvalidIdsError, match=r"mask.png: .*\(0-2\): 254 on 1 pixels"):
        colours.read(file, "ids")


def test_without_the_role_ignore_every_pixel_has_a_class(tmp_path: Path) -> None:
    file = tmp_path / "mask.png"
    file.write_bytes(png(np.array([[1, 6]], np.uint8)))
    with pytest.raises(InvalidIdsError, match="6 on 1 pixels"):
        MaskColours(DEFAULT_CLASSES).read(file, "ids")


def test_what_is_ignored_is_no_class(tmp_path: Path) -> None:
    file = tmp_path / "classes.csv"
    file.write_text(TABLE.replace("255,,9,9,9", "2,,200,180,90").replace(",,8,8,8", "void,,8,8,8"))
    with pytest.raises(ConfigurationError) as error:
        read_classes(file)
    assert str(error.value).splitlines()[1:] == [
        "  - line 6: 'void' is not an id; use a number from 0 to 255, or leave it empty",
        "  - the colour (200, 180, 90) has the role ignore, but is also that of path",
        "  - the id 2 has the role ignore, but is also that of pond",
    ]
