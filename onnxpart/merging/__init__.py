"""Parts' arrays become the whole's, and back."""
