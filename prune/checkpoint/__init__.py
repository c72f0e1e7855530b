"""Writing a pruned checkpoint: slices of the source, streamed, verified, swapped in whole, without torch."""
