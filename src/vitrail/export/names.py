"""What a graph's input and outputs are called: for who makes one and for who runs it.

It stands alone, so that running a graph costs no import of what makes it (torch).
"""

INPUT, OUTPUTS, ATTENTION = "images", ("logits", "probabilities"), "attention"
OPSET = 20  # the first with GELU as an operation of its own
