"""Models to compare against, scored on the same candidates."""
