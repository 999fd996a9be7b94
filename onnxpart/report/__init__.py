"""What runs found, as a page: curves, times, tables."""
