"""Will it fit, how fast, with which settings: answers before a model is fetched or loaded. See docs/planning.md."""
