"""The HTML report: one self-contained file, figures inside."""
