"""Counts per layer by what is left after a refit: measured layer by layer, chosen for the whole model."""
