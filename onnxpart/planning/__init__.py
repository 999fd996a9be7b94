"""Which unit goes to which part: analysis and K become a plan."""
