"""A model on disk or on the hub: found, listed, read by headers alone, identified. No torch."""
