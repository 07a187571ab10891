"""MkDocs hook that replaces the theme's script for offline search, loaded from a CDN, by a local copy."""

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.pages import Page

_FETCHED = "https://unpkg.com/iframe-worker/shim"


def on_post_page(output: str, page: Page, config: MkDocsConfig) -> str:
    """Replace the address of the script in a page."""
    return output.replace(_FETCHED, "../" * page.url.count("/") + "assets/iframe-worker.js")


def on_post_template(output_content: str, template_name: str, config: MkDocsConfig) -> str:
    """Replace the address of the script in a page without a source file, such as the 404 page."""
    return output_content.replace(_FETCHED, "assets/iframe-worker.js")
