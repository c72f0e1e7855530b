"""What the commands of a recipe share: early refusals, the model and its texts, run folder, measures."""
