"""What every operator does to labels: the table, and a file for each kind of operator."""
