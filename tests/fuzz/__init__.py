"""Fuzzing of every reader of what is stored or foreign: `make fuzz`, and a short run in the suite (`test_fuzz`)."""
