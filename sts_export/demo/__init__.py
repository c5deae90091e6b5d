"""The demo model: a small trained LLaVA checkpoint, and the synthetic world it was trained on."""

from pathlib import Path

MODEL_DIR = Path(__file__).parent / "model"
PICTURES_DIR = Path(__file__).parent / "pictures"
# Weights of stages that have some of their own, trained for this model: stage -> file.
SELECTORS = {"learned": Path(__file__).parent / "learnpruner.safetensors"}
