"""One pass over the decoder layers that serves many jobs: hidden states wait, the weights pass by once."""
