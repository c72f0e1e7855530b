"""The refit: least squares in the kept experts' down projections, layer by layer, without training."""
