"""`excise sample`: a model writes text of its own into a file, which other machines calibrate on."""
