"""Tests of the training room: runs that must be the same run, metrics, precision, checkpoints."""
