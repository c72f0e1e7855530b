"""A recipe: its keys, its file, and the budget it asks for. Nothing here needs torch."""
