"""`excise prune`: calibrate, rank, test, write, reload."""
