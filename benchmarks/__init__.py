"""Claims about vrpo that are measured: `python -m benchmarks NAME [--tiny]`, one folder a claim."""
