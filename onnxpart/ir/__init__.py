"""A model in canonical form: one flat list of operators, shapes, values that are known."""
