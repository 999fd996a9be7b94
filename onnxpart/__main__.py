"""`python -m onnxpart`."""

from onnxpart.cli.app import main

main()
