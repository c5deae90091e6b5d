"""The demo model on its held-out questions: every table, its records and its page (scripts/evaluate_demo)."""
