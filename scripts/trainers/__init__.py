"""Trainers that people have, on parts: what they are called with, and what comes out."""
