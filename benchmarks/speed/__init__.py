"""One form for every row of docs/speed.md: rounds that interleave, a control, medians with their spread, ratios."""
