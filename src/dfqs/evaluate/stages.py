"""Names of the stages, as the command line and the stored results have them, in the order in which they run."""

REASONING = "reasoning"
CODE = "code"
CONTEXT = "context"
BOUNDARY = "boundary"
SPEED = "speed"
STAGES = (REASONING, CODE, CONTEXT, BOUNDARY, SPEED)

NOTES = "notes"
"""Not a stage: what a run writes down about its machine and its answerer."""
