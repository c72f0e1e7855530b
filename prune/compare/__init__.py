"""`excise compare`: criteria head to head."""
