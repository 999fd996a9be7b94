"""`python -m onnxpart`."""

from onnxpart.cli import main

main()
