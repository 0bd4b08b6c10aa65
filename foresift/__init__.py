"""foresift: training-time data selection and curation for language models.

from foresift import Recipe, Run

run = Recipe.read("recipe.yaml", ["rounds.count=1"]).run("out")
print(run.manifest["accounts"])
"""

from foresift.pipeline.errors import DataError, ForesiftError, ModelError, RecipeError, StoreError
from foresift.pipeline.recipe import Recipe
from foresift.pipeline.run import Run

__version__ = "0.1.0"
__all__ = [
    "DataError",
    "ForesiftError",
    "ModelError",
    "Recipe",
    "RecipeError",
    "Run",
    "StoreError",
    "__version__",
]
