"""The pruning stages as pure functions of tensors, written for exactness; a file a stage, named as the stage."""
