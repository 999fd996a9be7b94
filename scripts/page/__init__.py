"""The page of a partition in a browser: examples, tests, pictures."""
