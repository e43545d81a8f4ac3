"""What verbs print under `--json`: one record a form. The text for people is rendered from the same facts."""
