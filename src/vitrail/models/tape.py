"""The tape: how anyone sees inside a model without hooks and without matching module names.

A model names its intermediate tensors as they are born and, when it is given a tape, leaves them
there: `model(images, tape=tape)`, then `tape["blocks.3.attention"]`. Without a tape nothing is
kept and attention runs fused; asking for an attention map is what makes that one explicit.
The logits are the same either way. Tapes go through `torch.compile(fullgraph=True)` as they are;
`torch.export` refuses them as arguments, so export a `Recorded` model instead.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence

from torch import Tensor, nn

from vitrail.kit.errors import Error, did_you_mean


class Tape(Mapping[str, Tensor]):
    """The named intermediates of one forward pass, in the order in which they were made.

    Args:
        only: a name, or a pattern with ``*`` for any run of characters, or several of them;
            other tensors are not kept. None keeps everything.
    """

    def __init__(self, only: str | Sequence[str] | None = None):
        self._only = (only,) if isinstance(only, str) else None if only is None else tuple(only)
        self._prefix = ""
        self._tensors: dict[str, Tensor] = {}

    def at(self, name: str) -> "Tape":
        """A view of this tape in which every name begins with ``name.``, for a part of a model."""
        view = Tape(self._only)
        view._prefix = f"{self._prefix}{name}."
        view._tensors = self._tensors
        return view

    def wants(self, name: str) -> bool:
        """Whether a tensor of this name would be kept."""
        if self._only is None:
            return True
        full = self._prefix + name
        return any(_matches(full, pattern) for pattern in self._only)

    def put(self, name: str, tensor: Tensor) -> None:
        """Keep a tensor under this name, if it is wanted."""
        if self.wants(name):
            self._tensors[self._prefix + name] = tensor

    def __getitem__(self, name: str) -> Tensor:
        try:
            return self._tensors[self._prefix + name]
        except KeyError:
            raise KeyError(
                f"nothing named {name!r} on this tape{did_you_mean(name, self)}"
            ) from None

    def __iter__(self) -> Iterator[str]:
        start = len(self._prefix)
        return (name[start:] for name in self._tensors if name.startswith(self._prefix))

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def __repr__(self) -> str:
        return "Tape(" + ", ".join(f"{name} {list(t.shape)}" for name, t in self.items()) + ")"


class Listener(Tape):
    """A tape that hands every tensor to a function as it is born, and keeps none of them.

    The attention of all layers of a large model at once fills memory; one after the other it does
    not.

    Args:
        hear: called with a tensor's whole name and the tensor.
        only: which tensors, as for `Tape`.
    """

    def __init__(
        self, hear: Callable[[str, Tensor], None], only: str | Sequence[str] | None = None
    ):
        super().__init__(only)
        self._hear = hear

    def at(self, name: str) -> "Listener":
        """As for `Tape`."""
        view = Listener(self._hear, self._only)
        view._prefix = f"{self._prefix}{name}."
        return view

    def put(self, name: str, tensor: Tensor) -> None:
        """Hand a tensor on under its whole name, if it is wanted."""
        if self.wants(name):
            self._hear(self._prefix + name, tensor)


def inside(tape: Tape | None, name: str) -> Tape | None:
    """`tape.at(name)`, or None where there is no tape."""
    return None if tape is None else tape.at(name)


def record(tape: Tape | None, name: str, tensor: Tensor) -> Tensor:
    """Put a tensor on the tape, if there is one, and hand it on."""
    if tape is not None:
        tape.put(name, tensor)
    return tensor


class Recorded(nn.Module):
    """A model that makes its own tape: images -> (logits, {name: tensor}). For `torch.export`.

    Args:
        model: any model of the zoo.
        names: what to record, as for `Tape`'s ``only``.

    Raises:
        Error: (on the first call) a name that the model does not make.
    """

    def __init__(self, model: nn.Module, names: str | Sequence[str]):
        super().__init__()
        self.model = model
        self.names = (names,) if isinstance(names, str) else tuple(names)

    def forward(self, images: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Images float [b c h w] to the logits and the tensors asked for, by name."""
        tape = Tape(only=self.names)
        logits = self.model(images, tape=tape)
        for name in self.names:
            if not any(_matches(kept, name) for kept in tape):
                raise Error(f"the model makes no tensor named {name!r}")
        return logits, dict(tape.items())


def _matches(name: str, pattern: str) -> bool:
    # A glob of plain string steps: fnmatch goes through `re`, which torch.compile cannot trace.
    head, *rest = pattern.split("*")
    if not rest:
        return name == head
    if not name.startswith(head):
        return False
    position = len(head)
    for piece in rest[:-1]:
        found = name.find(piece, position)
        if found < 0:
            return False
        position = found + len(piece)
    return len(name) - position >= len(rest[-1]) and name.endswith(rest[-1])
