"""What ranks experts: one pass over calibration text, formulas, baselines, and the selection of a plan."""
