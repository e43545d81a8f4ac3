"""Making an artifact of a deployment class: importance, quantization, and what it cost. See docs/quantize.md.

`plan` decides, `execute` converts in a worker process, `quantize` ties them together; `imatrix` and `perplexity`
measure.
"""
