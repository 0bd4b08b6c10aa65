"""foresift: training-time data selection and curation for language models."""

__version__ = "0.1.0"
