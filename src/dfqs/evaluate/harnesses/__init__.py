"""Models of ours for the evaluation harnesses that people have: their tasks, our likelihoods."""
