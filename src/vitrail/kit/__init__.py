"""The ground floor: pieces that know nothing of models, images or training runs."""
