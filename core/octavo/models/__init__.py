"""Models: one config-driven decoder, the checkpoints that feed it, and tokenizers."""
