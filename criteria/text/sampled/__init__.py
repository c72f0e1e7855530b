"""Text from the model itself: windows that the unpruned model writes, and files of them."""
