"""One file in this folder is one part of the verb; the file name is its name."""
