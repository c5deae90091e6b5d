"""Parts of the demo model's training: data, model, losses, evaluation."""
