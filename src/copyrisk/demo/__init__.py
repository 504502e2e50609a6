"""The demo: a small broker that does not exist, with the real daemon at work on it."""
