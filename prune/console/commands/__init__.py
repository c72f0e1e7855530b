"""One file per command: its arguments, one call, one print."""
