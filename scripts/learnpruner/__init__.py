"""Training of LearnPruner's selector: the parts of `python -m scripts.train_learnpruner`."""
