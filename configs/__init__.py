"""Recipes that run as they stand, and small model configurations."""

if __name__ == "configs":
    raise ImportError("import it as foresift.configs (the folder is mapped by pyproject.toml)")
