"""Bytes on disk: models, arrays and their rows, written whole or not at all."""
