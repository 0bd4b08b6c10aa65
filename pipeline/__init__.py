"""The core: nouns, contracts, recipe, store, engines, run, command line, and the model pass."""

if __name__ == "pipeline":
    raise ImportError("import it as foresift.pipeline (the folder is mapped by pyproject.toml)")
