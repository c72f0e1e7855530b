"""Local distillation: one layer's routed block is trained on what it should give, after its refit."""
