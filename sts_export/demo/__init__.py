"""The demo model: a small trained LLaVA checkpoint, and the synthetic world it was trained on."""

from pathlib import Path

MODEL_DIR = Path(__file__).parent / "model"
PICTURES_DIR = Path(__file__).parent / "pictures"
