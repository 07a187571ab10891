"""Web page in a real browser: prediction, overlay, downloads, errors, keyboard, layout and contrast."""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import Browser, Page, expect, sync_playwright

from droneseg.core.camera import WARNING_MESSAGES, WarningCode
from droneseg.core.classes import DEFAULT_CLASSES, ClassTable, Role, SegmentationClass
from droneseg.core.masks import read_mask
from droneseg.core.overlay import HATCHING
from support.bundles import TRAINED_AT, VIEWS, make_bundle
from support.images import png
from support.programs import require_program
from support.server import Server, serving
from support.waiting import HANG_S, wait_until

expect.set_options(timeout=1000 * HANG_S)

# left half bright (landing zone), right half blue (water)
PIXELS = np.zeros((120, 160, 3), np.uint8)
PIXELS[:, :80] = 220
PIXELS[:, 80:, 2] = 230


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("page")
    make_bundle(folder / "champion", patch=(64, 64), ground=TRAINED_AT, context=VIEWS)
    with serving(folder, model=folder / "champion") as server:
        yield server


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    program = require_program("chromium", "google-chrome", "chromium-browser")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"], timeout=1000 * HANG_S)
        yield browser
        browser.close()


@pytest.fixture
def page(browser: Browser, server: Server) -> Iterator[Page]:
    page = browser.new_page()
    page.set_default_timeout(1000 * HANG_S)
    problems: list[str] = []
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on(
        "request",
        lambda request: problems.extend(
            () if request.url.startswith((server.url, "blob:", "data:")) else (request.url,)
        ),
    )
    page.goto(f"{server.url}/ui")
    yield page
    page.close()
    assert problems == []


def choose(page: Page, data: bytes = png(PIXELS), name: str = "field.png") -> None:
    page.set_input_files("#file", {"name": name, "mimeType": "image/png", "buffer": data})


def pixel(page: Page, x: int, y: int) -> list[int]:
    """Return the RGBA value of an overlay pixel."""
    code = "([x, y]) => [...document.getElementById('overlay').getContext('2d').getImageData(x, y, 1, 1).data]"
    return list(page.evaluate(code, [x, y]))


def test_photo_is_shown_with_its_classes(page: Page) -> None:
    choose(page)
    expect(page.locator("#status")).to_have_text("Done: field.png")
    expect(page.locator("#headline")).to_have_text("50.0 % landing zones")
    rows = page.locator("#classes li")
    expect(rows).to_have_count(6)
    expect(rows.nth(2)).to_contain_text("water")
    expect(rows.nth(2)).to_contain_text("50.0 %")
    expect(page.locator("#facts")).to_contain_text("160 \u00d7 120")
    left, right = pixel(page, 10, 60), pixel(page, 150, 60)
    assert np.abs(np.subtract(left[:3], DEFAULT_CLASSES.display_colour(5))).max() <= 2
    assert np.abs(np.subtract(right[:3], (14, 135, 204))).max() <= 2
    assert right[3] == round(0.55 * 255)
    row = {pixel(page, x, 60)[3] for x in range(10, 30)}
    opacities = HATCHING.ground_opacity, HATCHING.stripe_opacity
    assert row == {round(factor * 0.55 * 255) for factor in opacities}, "landing zones are hatched"


def test_warnings_are_shown_in_words_above_picture_and_figures(page: Page) -> None:
    choose(page)
    warning = page.locator("#warnings li")
    expect(warning).to_have_count(1)
    expect(warning).to_contain_text(WARNING_MESSAGES[WarningCode.UNKNOWN_SCALE])
    for below in ("#stage", "#headline"):
        assert warning.bounding_box()["y"] < page.locator(below).bounding_box()["y"]  # type: ignore[index]
    expect(page.locator("#facts")).to_contain_text("Groundunknown")
    page.set_viewport_size({"width": 360, "height": 800})
    assert warning.bounding_box()["y"] < page.locator("#stage").bounding_box()["y"]  # type: ignore[index]
    choose(page, b"not an image", "notes.txt")
    expect(page.get_by_role("alert")).to_contain_text("Unknown image format")
    expect(warning).to_have_count(0)


def test_scale_that_the_user_enters_is_sent_and_shown(page: Page) -> None:
    choose(page)
    expect(page.locator("#result")).to_be_visible()
    with page.expect_response("**/predict") as sent:
        page.get_by_label("Metres per pixel").fill("0,02")
        page.keyboard.press("Enter")
    assert sent.value.json()["ground"]["gsd_m"] == 0.02
    expect(page.locator("#facts")).to_contain_text("2 cm per pixel (given)")
    expect(page.locator("#warnings li")).to_have_count(0)
    with page.expect_response("**/predict") as sent:
        page.get_by_label("height above ground").fill("40")
        page.keyboard.press("Enter")
    assert sent.value.json()["ground"]["height_m"] == 40  # the camera is unknown
    expect(page.get_by_label("Metres per pixel")).to_have_value("")
    expect(page.locator("#warnings li")).to_contain_text([WARNING_MESSAGES[WarningCode.UNKNOWN_CAMERA]])


def test_entered_scale_is_not_used_for_the_next_photo(page: Page) -> None:
    page.get_by_label("Metres per pixel").fill("0.02")
    choose(page)
    expect(page.locator("#facts")).to_contain_text("2 cm per pixel (given)")
    choose(page)
    expect(page.locator("#facts")).to_contain_text("Groundunknown")
    expect(page.get_by_label("Metres per pixel")).to_have_value("")


def test_wrong_scale_is_refused_with_a_remedy(page: Page) -> None:
    page.get_by_label("Metres per pixel").fill("2 cm")
    choose(page)
    expect(page.get_by_role("alert")).to_have_text(
        "field.png: gsd_m is '2 cm'. Send metres per pixel, 1e-06 to 10000, for example 0.025."
    )


def test_plain_switch_uses_the_pixels_as_they_are(page: Page) -> None:
    page.get_by_label("Metres per pixel").fill("0.05")
    choose(page)
    expect(page.locator("#result")).to_be_visible()
    with page.expect_response("**/predict") as sent:
        page.get_by_label("Use the pixels as they are").check()
    assert sent.value.json()["ground"]["scale"] == 1
    with page.expect_response("**/predict") as sent:
        page.get_by_label("Use the pixels as they are").uncheck()
    assert sent.value.json()["ground"]["scale"] == 2


def test_opacity_and_class_selection_change_the_overlay(page: Page) -> None:
    choose(page)
    expect(page.locator("#result")).to_be_visible()
    page.locator("#opacity").fill("100")
    wait_until(lambda: pixel(page, 150, 60)[3] == 255)
    page.get_by_label("water").uncheck()
    wait_until(lambda: pixel(page, 150, 60)[3] == 0)
    assert pixel(page, 10, 60)[3] > 0


def test_landing_sites_are_found_and_drawn(page: Page) -> None:
    choose(page)
    expect(page.locator("#result")).to_be_visible()
    page.get_by_role("button", name="Find landing sites").click()
    expect(page.locator("#landing-status")).to_contain_text("the best has room for a radius of")
    expect(page.locator("#sites li").first).to_contain_text("no people seen")
    wait_until(lambda: any(pixel(page, x, 60)[:3] == [255, 255, 255] for x in range(80)))
    assert all(pixel(page, x, 60)[:3] != [255, 255, 255] for x in range(85, 160)), "no ring on water"
    page.get_by_label("Show sites on the photo").uncheck()
    wait_until(lambda: all(pixel(page, x, 60)[:3] != [255, 255, 255] for x in range(80)))


OWN_NAMES = ("void", "roof", "pond", "meadow", "car", "road")


@contextmanager
def page_of(browser: Browser, folder: Path, roles: dict[str, Role]) -> Iterator[Page]:
    """Open the page of a model with own classes, whose network is that of the other tests."""
    entries = [
        SegmentationClass(number, name, (40 * number, 10, 99), roles.get(name)) for number, name in enumerate(OWN_NAMES)
    ]
    make_bundle(folder / "champion", patch=(64, 64), classes=ClassTable(tuple(entries)))
    with serving(folder, model=folder / "champion") as server:
        page = browser.new_page()
        page.set_default_timeout(1000 * HANG_S)
        page.goto(f"{server.url}/ui")
        choose(page)
        expect(page.locator("#result")).to_be_visible()
        names = [text.split("\n")[0] for text in page.locator("#classes li label").all_inner_texts()]
        assert names == list(OWN_NAMES)
        yield page
        page.close()


def test_page_of_a_model_without_roles_says_nothing_about_landing(browser: Browser, tmp_path: Path) -> None:
    with page_of(browser, tmp_path, {}) as page:
        expect(page.locator("#headline")).to_have_text("50.0 % pond")
        expect(page.locator("#landing")).to_be_hidden()
        expect(page.locator("#no-landing")).to_have_text(
            "There is no landing role in this model, so nothing can be said about landing."
        )


def test_page_of_a_model_with_soft_ground_only_lands_there_on_request(browser: Browser, tmp_path: Path) -> None:
    with page_of(browser, tmp_path, {"meadow": Role.SOFT, "road": Role.SOFT}) as page:
        expect(page.locator("#no-landing")).to_be_hidden()
        expect(page.get_by_label("Clearance from people in metres")).to_be_hidden()
        page.get_by_role("button", name="Find landing sites").click()
        expect(page.locator("#landing-status")).to_contain_text(
            "There is no landing role in this model. To land on soft"
        )
        expect(page.locator("#soft-option")).to_have_text("Land on meadow, road", use_inner_text=True)
        page.locator("#soft").check()
        page.get_by_role("button", name="Find landing sites").click()
        expect(page.locator("#landing-status")).to_contain_text("the best has room for a radius of")
        expect(page.locator("#landing-status")).to_contain_text("No class has the role moving")
        expect(page.locator("#landing-status")).not_to_contain_text("px from people")
        expect(page.locator("#sites li").first).not_to_contain_text("people")


def test_landing_sites_are_found_again_if_the_scale_changes(page: Page) -> None:
    choose(page)
    expect(page.locator("#result")).to_be_visible()
    page.get_by_label("Radius in metres").fill("0.2")
    page.get_by_label("Metres per pixel").fill("0.02")
    page.get_by_role("button", name="Find landing sites").click()  # leaving the scale sends the photo again
    expect(page.locator("#landing-status")).to_contain_text("Required: a radius of 0.2 m")
    with page.expect_response("**/landing_sites"):
        page.get_by_label("Metres per pixel").fill("0.03")
        page.keyboard.press("Enter")
    expect(page.locator("#facts")).to_contain_text("3 cm per pixel (given)")
    expect(page.locator("#landing-status")).to_contain_text("Required: a radius of 0.2 m")


def test_the_reason_for_no_landing_site_is_shown_in_words(page: Page) -> None:
    choose(page)
    expect(page.locator("#result")).to_be_visible()
    page.get_by_label("Radius in metres").fill("2")
    page.get_by_role("button", name="Find landing sites").click()
    expect(page.locator("#landing-status")).to_contain_text("The ground resolution of the image is not known")
    expect(page.locator("#sites li")).to_have_count(0)
    page.get_by_label("Radius in metres").fill("two")
    page.get_by_role("button", name="Find landing sites").click()
    expect(page.locator("#landing-status")).to_contain_text("radius_m")
    choose(page, png(PIXELS[:, 80:]), "lake.png")
    expect(page.locator("#landing-status")).to_have_text("")


def test_mask_and_overlay_can_be_saved(page: Page, tmp_path: Path) -> None:
    choose(page)
    expect(page.locator("#result")).to_be_visible()
    with page.expect_download() as saved:
        page.locator("#save-mask").click()
    assert saved.value.suggested_filename == "field.png"
    saved.value.save_as(tmp_path / "mask.png")
    mask = read_mask(tmp_path / "mask.png", "ids", DEFAULT_CLASSES)
    assert (mask[:, :80] == 5).all()
    assert (mask[:, 80:] == 2).all()
    with page.expect_download() as saved:
        page.locator("#save-overlay").click()
    assert saved.value.suggested_filename == "field_overlay.png"
    saved.value.save_as(tmp_path / "overlay.png")
    drawn = np.asarray(Image.open(tmp_path / "overlay.png").convert("RGB")).astype(int)
    expected = 0.55 * np.array((14, 135, 204)) + 0.45 * PIXELS[60, 150]
    assert np.abs(drawn[60, 150] - expected).max() <= 2


def test_error_message_is_shown(page: Page) -> None:
    choose(page, b"not an image", "notes.txt")
    expect(page.get_by_role("alert")).to_contain_text("Unknown image format")
    expect(page.locator("#result")).to_be_hidden()
    choose(page)
    expect(page.locator("#status")).to_have_text("Done: field.png")
    expect(page.get_by_role("alert")).to_be_empty()


@pytest.mark.parametrize("way", ["drop", "paste"])
def test_photo_can_be_dropped_or_pasted(page: Page, way: str) -> None:
    page.evaluate(
        """([bytes, way]) => {
          const data = new DataTransfer();
          data.items.add(new File([new Uint8Array(bytes)], "field.png", { type: "image/png" }));
          const event = way === "drop"
            ? new DragEvent("drop", { dataTransfer: data, bubbles: true, cancelable: true })
            : new ClipboardEvent("paste", { clipboardData: data, bubbles: true });
          document.getElementById("drop").dispatchEvent(event);
        }""",
        [list(png(PIXELS)), way],
    )
    expect(page.locator("#status")).to_have_text("Done: field.png")
    expect(page.locator("#headline")).to_have_text("50.0 % landing zones")


def test_same_photo_can_be_chosen_again(page: Page) -> None:
    choose(page)
    expect(page.locator("#result")).to_be_visible()
    with page.expect_response("**/predict"):
        choose(page)
    expect(page.locator("#status")).to_have_text("Done: field.png")


def test_only_the_last_chosen_photo_is_shown(page: Page) -> None:
    dark = np.zeros_like(PIXELS)
    dark[..., 2] = 230
    page.evaluate(
        """async ([first, second]) => {
          const file = (bytes, name) => new File([new Uint8Array(bytes)], name, { type: "image/png" });
          send(file(first, "first.png"));
          await new Promise((done) => setTimeout(done, 30));
          send(file(second, "second.png"));
        }""",
        [list(png(PIXELS)), list(png(dark))],
    )
    expect(page.locator("#status")).to_have_text("Done: second.png")
    expect(page.locator("#headline")).to_have_text("0.0 % landing zones")
    page.wait_for_timeout(300)
    expect(page.locator("#status")).to_have_text("Done: second.png")


def test_classes_are_shown_if_browser_cannot_decode_the_photo(page: Page) -> None:
    out = io.BytesIO()
    Image.fromarray(PIXELS).save(out, "TIFF")
    choose(page, out.getvalue(), "field.tif")
    expect(page.locator("#result")).to_be_visible()
    assert pixel(page, 10, 60)[3] == 255
    expect(page.locator("#photo")).to_be_hidden()


def test_all_controls_are_reachable_by_keyboard(page: Page) -> None:
    choose(page)
    expect(page.locator("#result")).to_be_visible()
    page.locator("body").press("Tab")
    reached = []
    expected = ["file", "gsd", "height", "plain", "radius", "people", "soft", "find-sites", "opacity", *"012345"]
    expected += ["save-mask", "save-overlay"]
    for _ in expected:
        reached.append(page.evaluate("document.activeElement.id || document.activeElement.value"))
        page.keyboard.press("Tab")
    assert reached == expected, "in the order on the page"


@pytest.mark.parametrize("width", [360, 768, 1400])
def test_page_fits_the_screen_width(page: Page, width: int) -> None:
    page.set_viewport_size({"width": width, "height": 800})
    choose(page)
    expect(page.locator("#result")).to_be_visible()
    assert page.evaluate("document.documentElement.scrollWidth") <= width


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_has_enough_contrast_in_light_and_dark_mode(page: Page, scheme: str) -> None:
    page.emulate_media(color_scheme=scheme)  # type: ignore[arg-type]
    choose(page)
    expect(page.locator("#result")).to_be_visible()
    for selector, background in (
        ("h1", "body"),
        (".quiet", "body"),
        ("#warnings strong", "#warnings li"),
        ("#options legend", "body"),
        ("#headline", "#panel"),
        ("dt", "#panel"),
        ("button#save-overlay", "button#save-overlay"),
    ):
        assert contrast(page, selector, background) >= 4.5, selector


def contrast(page: Page, selector: str, background: str) -> float:
    """Return the contrast ratio of text and background (WCAG 2.2, 1.4.3)."""
    code = "([s, p]) => getComputedStyle(document.querySelector(s))[p]"
    texts = page.evaluate(code, [selector, "color"]), page.evaluate(code, [background, "backgroundColor"])
    lights = sorted(_luminance([int(part) for part in text.strip("rgba()").split(",")[:3]]) for text in texts)
    return (lights[1] + 0.05) / (lights[0] + 0.05)


def _luminance(colour: list[int]) -> float:
    parts = [part / 255 for part in colour]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return sum(weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), linear, strict=True))
