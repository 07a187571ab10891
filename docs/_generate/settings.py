"""Generate the reference pages of environment settings and training keys from their pydantic models."""

from typing import Any

import mkdocs_gen_files
from pydantic_core import PydanticUndefined

from droneseg.core.settings import Settings, variable_names
from droneseg.nnunet.trainer_settings import TrainerSettings
from droneseg.training.config import TrainingConfig, WandbTracking, load_config, preset_names, training_keys


def table(heading: list[str], rows: list[list[str]]) -> str:
    """Format a Markdown table."""
    lines = [heading, ["---"] * len(heading), *rows]
    return "".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |\n" for line in lines)


def bounds(name: str, schema: dict[str, Any]) -> str:
    """Describe the allowed values of a field."""
    field = schema["properties"][name]
    options = [_one(each) for each in field.get("anyOf", [field]) if each.get("type") != "null"]
    return ", or ".join(dict.fromkeys(option for option in options if option))


def _one(field: dict[str, Any]) -> str:
    choices = field.get("enum") or ([field["const"]] if "const" in field else None)
    if choices:
        return ", ".join(f"`{value}`" for value in choices)
    limits = [
        f"{word} {field[key]:,}"
        for key, word in (
            ("minimum", "at least"),
            ("exclusiveMinimum", "above"),
            ("maximum", "at most"),
            ("exclusiveMaximum", "below"),
        )
        if key in field
    ]
    kind = {"boolean": "`true`, `false`", "integer": "whole number", "number": "number", "array": "list"}
    named = "folder" if field.get("format") == "path" else kind.get(str(field.get("type")), "text")
    if field.get("minLength"):
        limits.append(f"at least {field['minLength']} characters")
    return " ".join([named, *([", ".join(limits)] if limits else [])])


def shown(value: object) -> str:
    """Format a default value as a user would write it."""
    if value is None or value is PydanticUndefined:
        return ""
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"


def environment() -> str:
    """Return the table of environment variables."""
    schema = Settings.model_json_schema(by_alias=False)
    rows = []
    for (name, field), variable in zip(Settings.model_fields.items(), variable_names(), strict=True):
        value = "" if "definition" in schema["properties"][name].get("$ref", "") else _resolved(name, schema)
        rows.append([f"`{variable}`", shown(field.default), value, field.description or ""])
    return table(["variable", "default", "values", "meaning"], rows)


def _resolved(name: str, schema: dict[str, Any]) -> str:
    field = schema["properties"][name]
    reference = field.get("$ref") or next((each["$ref"] for each in field.get("allOf", []) if "$ref" in each), None)
    if reference:
        return _one(schema["$defs"][reference.rpartition("/")[2]])
    return bounds(name, schema)


def training() -> str:
    """Return the table of training keys, with the value of each preset."""
    presets = {name: load_config([f"preset={name}"]) for name in preset_names()}
    schemas = [model.model_json_schema() for model in (TrainingConfig, TrainerSettings)]
    rows = []
    for name, meaning in training_keys().items():
        if "." in name:
            continue  # of tracking
        schema = next(each for each in schemas if name in each["properties"])
        values = [_value(config, name) for config in presets.values()]
        rows.append([f"`{name}`", meaning, *values, bounds(name, schema)])
    return table(["key", "meaning", *presets, "values"], rows)


def _value(config: TrainingConfig, name: str) -> str:
    values = config.model_dump(mode="json")
    value = (values["trainer"] | values)[name]
    return "" if value is None else f"{str(value).lower() if isinstance(value, bool) else value}"


def tracking() -> str:
    """Return the table of the keys of `tracking=wandb`, with their defaults."""
    schema = WandbTracking.model_json_schema()
    rows = [
        [f"`tracking.{name}`", shown(field.default), bounds(name, schema), field.description or ""]
        for name, field in WandbTracking.model_fields.items()
        if name != "name"
    ]
    return table(["key", "default", "values", "meaning"], rows)


with mkdocs_gen_files.open("reference/settings.md", "w") as page:
    page.write(
        "# Settings\n\n"
        "Environment variables that configure all commands and services.\n\n"
        "- Set them in the environment, or in a file `.env` in the working directory. The environment takes "
        "precedence.\n"
        "- If values are invalid, a command lists all of them and exits before it does anything else.\n"
        "- A misspelt name causes a warning.\n"
        "- A bento is served from its own folder and does not read `.env`.\n\n"
    )
    page.write(environment())
with mkdocs_gen_files.open("reference/training.md", "w") as page:
    page.write(
        "# Training keys\n\n"
        "Keys of `droneseg train`, with their values in each preset.\n\n"
        "- Set a key as `key=value`: `droneseg train preset=cpu max_minutes=30 learning_rate=0.002`.\n"
        '- Write a list as `"crop_size=[384,384]"` and an empty value as `null`.\n'
        "- `droneseg train --show` prints the resulting configuration.\n"
        "- The presets are the files in `configs/preset`. A cell is empty if nnU-Net's plan or the machine determines "
        "the value.\n\n"
    )
    page.write(training())
    page.write("\n## With `tracking=wandb`\n\n")
    page.write(tracking())
