"""`excise audit`: token by token, does a criterion rank experts by what removing them costs?"""
