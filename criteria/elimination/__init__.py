"""Backward elimination, a layer at a time: which expert leaves least when the others are refitted."""
