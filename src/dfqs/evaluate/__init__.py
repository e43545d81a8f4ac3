"""The five required metrics: frozen prompt sets, scorers, a sandbox, answerers to ask, and the run that stores results.

Asking is separate from judging, and judging is pure: a scorer sees an item and a completion, wherever that came from.
"""
