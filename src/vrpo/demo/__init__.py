"""`vrpo demo`: a whole alignment, small enough for a laptop."""
