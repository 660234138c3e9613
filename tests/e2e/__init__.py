"""The command line from end to end, on models that fit in a second."""
