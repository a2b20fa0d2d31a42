"""Measurements: one file a claim; each runs ours and a peer on the same data in the same process."""
