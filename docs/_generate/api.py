"""Generate the API reference: one page per package, from docstrings."""

import ast
from pathlib import Path

import mkdocs_gen_files

SOURCE = Path(__file__).parents[2] / "src" / "droneseg"


def packages() -> list[Path]:
    """Return the top-level packages."""
    return sorted(file.parent for file in SOURCE.glob("*/__init__.py"))


def summary(module: Path) -> str:
    """Return the first paragraph of a module's docstring as one line."""
    return (ast.get_docstring(ast.parse(module.read_text(encoding="utf-8"))) or "").split("\n\n")[0].replace("\n", " ")


for package in packages():
    with mkdocs_gen_files.open(f"reference/api/{package.name}.md", "w") as page:
        page.write(f"# droneseg.{package.name}\n\n{summary(package / '__init__.py')}\n")
        for module in sorted(package.rglob("*.py")):
            # the trainer's folder is not a package: nnU-Net imports its files by path
            if module.name != "__init__.py" and (module.parent / "__init__.py").exists():
                name = ".".join(module.relative_to(SOURCE.parent).with_suffix("").parts)
                page.write(f"\n::: {name}\n")
