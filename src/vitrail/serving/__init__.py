"""Using a trained model: pictures in, labels with probabilities out."""
