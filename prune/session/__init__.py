"""What the commands of a recipe share: what is refused at once, the model and its texts, the run folder, the measures."""
