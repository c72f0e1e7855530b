"""`excise doctor`: is this machine ready for a run?"""
