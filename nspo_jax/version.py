"""The package's version. This is its one place: pyproject.toml reads it from here."""

VERSION = "0.1.0"
