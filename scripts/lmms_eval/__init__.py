"""The demo world as a task of lmms-eval."""
