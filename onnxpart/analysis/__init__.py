"""Labels and ties: what moves together, whatever K is."""
