"""What bundles are compared with, beside the unpruned bundle."""

TRANSFORMERS, COMPILED = "transformers", "transformers-compiled"
BASELINES = (TRANSFORMERS, COMPILED)
