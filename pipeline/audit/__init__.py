"""Measures of what a model remembers of a text, attacks on it, and verdicts."""
