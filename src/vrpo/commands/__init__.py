"""What the command line runs, one module per family of commands."""
