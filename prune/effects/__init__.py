"""`excise effects`: what removing each expert costs, as a table."""
