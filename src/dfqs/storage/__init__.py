"""The crash-safe file engine: every mechanism that touches a disk, once."""
