"""foresift: training-time data selection and curation for language models.

from foresift import Recipe, Run

run = Recipe.read("recipe.yaml", ["rounds.count=1"]).run("out")
print(run.manifest["accounts"])

`Stream`, `EpochStream`, `attach` and `attach_epochs` choose rows in training, `StabilityGuard`
watches it; they are imported when asked for, as they need torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from foresift.pipeline.errors import DataError, ForesiftError, ModelError, RecipeError, StoreError
from foresift.pipeline.recipe import Recipe
from foresift.pipeline.run import Run

if TYPE_CHECKING:
    from foresift.pipeline.adapters.epochs import attach_epochs
    from foresift.pipeline.adapters.hf import attach
    from foresift.pipeline.epoch_stream import EpochStream
    from foresift.pipeline.stability import StabilityGuard
    from foresift.pipeline.stream import Stream

__version__ = "0.1.0"
__all__ = [
    "DataError",
    "EpochStream",
    "ForesiftError",
    "ModelError",
    "Recipe",
    "RecipeError",
    "Run",
    "StabilityGuard",
    "StoreError",
    "Stream",
    "__version__",
    "attach",
    "attach_epochs",
]
#: public names whose modules import torch -> the module
_LATER = {
    "EpochStream": "foresift.pipeline.epoch_stream",
    "StabilityGuard": "foresift.pipeline.stability",
    "Stream": "foresift.pipeline.stream",
    "attach": "foresift.pipeline.adapters.hf",
    "attach_epochs": "foresift.pipeline.adapters.epochs",
}


def __getattr__(name: str) -> Any:
    if name not in _LATER:
        raise AttributeError(f"module 'foresift' has no attribute {name!r}")
    return getattr(import_module(_LATER[name]), name)
