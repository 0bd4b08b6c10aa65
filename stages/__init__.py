"""What moves a data set: readers, dedup, selectors, orders, trainers, exporters, report."""

if __name__ == "stages":
    raise ImportError("import it as foresift.stages (the folder is mapped by pyproject.toml)")
