"""Batches: from files, folders, and a user's own datasets."""
