"""What a partition is, as a page to look at."""
