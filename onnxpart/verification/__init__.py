"""Whether parts and whole compute what they should."""
