"""Looking inside live models: what they attend to, and pictures of it."""
