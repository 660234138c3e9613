"""What all studies share: the run and its one JSON file, tables, intervals, pictures, tasks and base models."""
