"""Text for a model: where it comes from, how it is read, and which token windows are cut from it."""
