"""Why things are as they are, how large they are, and what they look like as text."""
