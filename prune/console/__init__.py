"""The command line: options, errors, exit codes, what is printed."""
