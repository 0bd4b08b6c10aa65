"""Streams in the trainers of other libraries: one file a library."""
