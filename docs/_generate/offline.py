"""Lets a page load nothing from elsewhere: what the theme fetches to search in a folder comes from our own assets."""

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.pages import Page

_FETCHED = "https://unpkg.com/iframe-worker/shim"


def on_post_page(output: str, page: Page, config: MkDocsConfig) -> str:
    """Return a page that asks for our own copy."""
    return output.replace(_FETCHED, "../" * page.url.count("/") + "assets/iframe-worker.js")


def on_post_template(output_content: str, template_name: str, config: MkDocsConfig) -> str:
    """Return a page that belongs to no file, such as of what is not found."""
    return output_content.replace(_FETCHED, "assets/iframe-worker.js")
