"""The loss family. Read objective.py first: DPO is written out there."""
