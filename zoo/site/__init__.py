"""The leaderboard as a web page, and the documentation: both are made from recipes, results and docstrings.

Imports no torch: docstrings are read from the source.
"""
