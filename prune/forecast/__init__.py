"""`--dry-run`: what a command will read, compute and write, and what it takes, from headers alone."""
