"""The product: recipes, stages, the streaming export and the command line."""
