"""The model's server: a front with rules, an engine behind it that may die, and clients that ask one."""
