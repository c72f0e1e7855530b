"""A checkpoint whose decoder layers stay on disk until they are needed."""
