"""The page for people, served from the package; it asks nothing of any other place."""

from importlib.resources import files

from fastapi import APIRouter
from fastapi.responses import Response

from droneseg.core.classes import CLASSES

_TYPES = {"page.html": "text/html", "page.css": "text/css", "page.js": "text/javascript", "icon.svg": "image/svg+xml"}
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}


def make_page() -> APIRouter:
    """Return the page at `/ui` and what it is made of."""
    router = APIRouter(include_in_schema=False)
    folder = files("droneseg.serving") / "static"
    contents = {name: (folder / name).read_bytes() for name in _TYPES}

    def serve(name: str, path: str) -> None:
        @router.get(path)
        async def part() -> Response:
            return Response(contents[name], media_type=_TYPES[name], headers=_HEADERS)

    serve("page.html", "/ui")
    for name in _TYPES:
        if name != "page.html":
            serve(name, f"/ui/{name}")

    @router.get("/ui/classes.json")
    async def classes() -> list[dict[str, object]]:
        return [{"id": entry.id, "name": entry.name, "colour": entry.colour} for entry in CLASSES]

    return router
