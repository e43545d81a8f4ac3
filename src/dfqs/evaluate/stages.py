"""Names of the stages, as the command line and the stored results have them, in the order in which they run."""

REASONING = "reasoning"
CODE = "code"
TOOLS = "tools"
PROFILE = "profile"
LIKELIHOOD = "likelihood"
CONTEXT = "context"
BOUNDARY = "boundary"
FLOOR = "floor"
SPEED = "speed"
STAGES = (REASONING, CODE, TOOLS, PROFILE, LIKELIHOOD, CONTEXT, BOUNDARY, FLOOR, SPEED)

ITEM_STAGES = (REASONING, CODE, TOOLS, PROFILE)
"""Those that ask one prompt after the other."""

NOTES = "notes"
"""Not a stage: what a run writes down about its machine and its answerer."""
