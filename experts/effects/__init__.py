"""What removing an expert costs: the exact effects, from one clean forward."""
