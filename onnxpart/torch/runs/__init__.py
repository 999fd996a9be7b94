"""Training runs as commands take them: files in, trained files out."""
