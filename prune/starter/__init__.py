"""From a model to a recipe: what `excise prune MODEL` runs and `excise init` writes."""
