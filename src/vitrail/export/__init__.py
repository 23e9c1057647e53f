"""From a model to what is deployed: folding, bundles, quantisation, and the gate before them."""
