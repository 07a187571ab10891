"""The references of the settings: the environment's and a training's, from the models that check them."""

from typing import Any

import mkdocs_gen_files
from pydantic_core import PydanticUndefined

from droneseg.core.settings import Settings, variable_names
from droneseg.nnunet.trainer_settings import TrainerSettings
from droneseg.training.config import TrainingConfig, WandbTracking, load_config, preset_names, training_keys


def table(heading: list[str], rows: list[list[str]]) -> str:
    """Return a table in Markdown."""
    lines = [heading, ["---"] * len(heading), *rows]
    return "".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |\n" for line in lines)


def bounds(name: str, schema: dict[str, Any]) -> str:
    """Return what a value may be, in words."""
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
    """Return a default as one would write it."""
    if value is None or value is PydanticUndefined:
        return ""
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"


def environment() -> str:
    """Return the table of the environment's settings."""
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
    """Return the table of a training's keys, with what each preset says."""
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
    """Return the table of the keys of `tracking=wandb`."""
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
        "Variables of the environment, or lines of a file `.env` where a command is started; the environment goes "
        "before it. A value that does not fit ends the command before it begins, and all such values are told at once; "
        "a name that is nearly one of these is warned of. A bento is served from its own folder and reads no "
        "`.env`.\n\n"
    )
    page.write(environment())
with mkdocs_gen_files.open("reference/training.md", "w") as page:
    page.write(
        "# Keys of a training\n\n"
        "`droneseg train preset=cpu max_minutes=30 learning_rate=0.002`: any key, as `key=value`; lists as "
        '`"crop_size=[384,384]"`, nothing as `null`. `droneseg train --show` prints what comes of it. The presets are '
        "the files of `configs/preset`; a column shows what each sets, and nothing where nnU-Net's plan or "
        "the machine decides.\n\n"
    )
    page.write(training())
    page.write("\n## With `tracking=wandb`\n\n")
    page.write(tracking())
