"""Readers of files: plain text, JSON, JSON lines, parquet; by offset, in bounded memory."""
