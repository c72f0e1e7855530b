"""Does the ranking hold when experts are really removed?"""
