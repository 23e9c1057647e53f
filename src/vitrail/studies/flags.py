"""The kinds of study by name, and the flags that only some of them take.

Plain words that import nothing: the command line's help needs them, and is there before torch.
"""

KINDS = {  # to the module of each
    "data-size": "data_size",
    "scaling": "scaling",
    "ablation": "ablation",
    "search": "search",
}
KINDS_OF = {  # which kinds take a flag that not all of them do
    "--sizes": ("data-size", "ablation", "search"),
    "--mode": ("data-size",),
    "--preset": ("data-size", "scaling"),
    "--axis": ("ablation",),
    "--change": ("ablation",),
    "--samples": ("search",),
    "--max-macs": ("search",),
}
