"""Recovery of pruned models. Empty so far: nothing here is offered on the command line or in recipes."""
