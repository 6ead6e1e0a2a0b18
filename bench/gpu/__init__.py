"""An 8B model on one GPU, beside transformers and beside what the card can do."""
