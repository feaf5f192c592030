"""Small models, written without weights to download."""
