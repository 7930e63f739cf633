"""What a server infers from an update: one module per attack."""
