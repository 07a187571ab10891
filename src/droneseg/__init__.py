"""Train nnU-Net on drone images with colour masks, and serve the model as a segmentation service.

    import droneseg

    model = droneseg.load()
    result = model("DJI_0030.JPG")
    result.overlay().save("overlay.png")

The public names below are loaded when they are first used, so that `import droneseg` costs almost nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING

__all__ = [
    "CLASSES",
    "Ground",
    "Model",
    "PredictionWarning",
    "Result",
    "Settings",
    "__version__",
    "errors",
    "load",
]

if TYPE_CHECKING:
    from droneseg.core import errors
    from droneseg.core.camera import Ground, PredictionWarning
    from droneseg.core.classes import DEFAULT_CLASSES as CLASSES
    from droneseg.core.settings import Settings
    from droneseg.inference.api import Model, Result, load

    __version__: str
else:
    _MODULES = {
        "CLASSES": ("core.classes", "DEFAULT_CLASSES"),
        "Ground": ("core.camera", "Ground"),
        "Model": ("inference.api", "Model"),
        "PredictionWarning": ("core.camera", "PredictionWarning"),
        "Result": ("inference.api", "Result"),
        "Settings": ("core.settings", "Settings"),
        "load": ("inference.api", "load"),
    }

    def __getattr__(name: str) -> object:
        if name == "__version__":
            from importlib.metadata import version

            value = version(__name__)
        elif name == "errors":
            value = import_module("droneseg.core.errors")
        elif name in _MODULES:
            module, attribute = _MODULES[name]
            value = getattr(import_module(f"{__name__}.{module}"), attribute)
        else:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        globals()[name] = value  # later accesses do not call this function
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
