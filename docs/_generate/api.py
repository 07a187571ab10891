"""The reference of the Python API: a page for every package, from its docstrings."""

import ast
from pathlib import Path

import mkdocs_gen_files

SOURCE = Path(__file__).parents[2] / "src" / "droneseg"


def packages() -> list[Path]:
    """Return the packages that stand for themselves."""
    return sorted(file.parent for file in SOURCE.glob("*/__init__.py"))


def owned(module: Path) -> str:
    """Return what a module says of itself, in one line."""
    return (ast.get_docstring(ast.parse(module.read_text(encoding="utf-8"))) or "").split("\n\n")[0].replace("\n", " ")


for package in packages():
    with mkdocs_gen_files.open(f"reference/api/{package.name}.md", "w") as page:
        page.write(f"# droneseg.{package.name}\n\n{owned(package / '__init__.py')}\n")
        for module in sorted(package.rglob("*.py")):
            # nnU-Net finds the trainer in a folder that is no package
            if module.name != "__init__.py" and (module.parent / "__init__.py").exists():
                name = ".".join(module.relative_to(SOURCE.parent).with_suffix("").parts)
                page.write(f"\n::: {name}\n")
