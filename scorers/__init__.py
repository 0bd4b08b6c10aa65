"""One file, one score. A scorer measures rows; it never drops, reorders or rewrites them."""

if __name__ == "scorers":
    raise ImportError("import it as foresift.scorers (the folder is mapped by pyproject.toml)")
