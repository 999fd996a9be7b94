"""A file becomes a model in canonical form, pass by pass."""
