"""Expert routing of Mixture-of-Experts models: captured, compared, proved. See docs/routing.md.

`trace` and `tracefile` are the data, `capture` gets it out of llama.cpp, and the rest looks at it.
"""
