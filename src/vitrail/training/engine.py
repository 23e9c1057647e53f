"""The engine: devices, precision and processes. The loop reads as if there were one of each.

This is the one file that names `torch.distributed`. Processes are those that ``torchrun`` started:
with gloo on the CPU and NCCL on CUDA, the same code. ``ddp`` keeps all of the model in every
process; ``fsdp`` keeps a share of every block's weights, gradients, averages and optimiser state
(FSDP2), and gathers a block's weights while they are needed.

What is special here: the mean over the global batch is exact. Each process weighs its loss by its
own number of readable pictures, so unequal shares and broken files do not tilt the gradient.
"""

import atexit
import contextlib
import functools
import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn, optim
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel
from torch.utils import _pytree

from vitrail.kit.devices import pick_device
from vitrail.kit.errors import Error
from vitrail.kit.files import sha256_of
from vitrail.models.parts import drop_paths
from vitrail.training.batchnorm import share_statistics
from vitrail.training.objectives import Learner, Loss, Supervised
from vitrail.training.watch import Watch, lost_process

AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}
WAYS = ("ddp", "fsdp")
BLOCKS = ("Block", "Bottleneck", "TokenTransformer", "TokenPerformer")  # ends of class names
T = TypeVar("T")


class Engine:
    """Places tensors, runs the forward pass in the asked precision, takes the step.

    Args:
        device: ``cpu``, ``cuda``, or None for the best that is there.
        precision: ``fp32``, ``fp64``, or ``bf16``/``fp16`` for autocast over float32 weights.
        parallel: ``ddp`` or ``fsdp`` for several processes; None is ``ddp``.

    Attributes:
        rank, world: which process this is, of how many; 0 and 1 for the only one.

    Raises:
        Error: a device that this machine has not, or a way of sharing without processes.
    """

    def __init__(self, device: str | None, precision: str, parallel: str | None = None):
        if parallel not in (None, *WAYS):
            raise Error(f"--parallel is ddp or fsdp, not {parallel!r}")
        started = "RANK" in os.environ and "WORLD_SIZE" in os.environ
        if parallel and not started:
            raise Error(
                f"--parallel {parallel} is for several processes, and this is the only one: "
                "start them with torchrun --nproc-per-node N -m vitrail train ..."
            )
        if parallel == "fsdp" and precision == "fp16":
            raise Error("--precision fp16 does not go with --parallel fsdp: use bf16, or ddp")
        if started and device != "cpu" and (device or torch.cuda.is_available()):
            device = f"cuda:{os.environ.get('LOCAL_RANK', 0)}"
        self.device = pick_device(device)
        self.precision = precision
        self.dtype = torch.float64 if precision == "fp64" else torch.float32
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=precision == "fp16")
        self.rank, self.world, self.watch = _join(self.device) if started else (0, 1, None)
        self.parallel = (parallel or "ddp") if started else None

    @property
    def name(self) -> str:
        """The device in words."""
        if self.device.type == "cuda":
            name = torch.cuda.get_device_name(self.device)
        else:
            threads = torch.get_num_threads()
            name = f"CPU, {threads} thread{'s' if threads > 1 else ''}"
        if self.parallel is None:
            return name
        return f"{self.world} processes ({self.parallel}), each on {name}"

    @property
    def first(self) -> bool:
        """Whether this is the process that writes, prints and decides."""
        return self.rank == 0

    @property
    def sharded(self) -> bool:
        """Whether each process holds only a share of every tensor."""
        return self.parallel == "fsdp"

    def place(self, tensor: Tensor) -> Tensor:
        """A tensor on the device; floating point in the weights' precision."""
        dtype = self.dtype if tensor.is_floating_point() else None
        return tensor.to(self.device, dtype, non_blocking=True)

    def wrap(self, learner: Learner, varies: bool = False) -> nn.Module:
        """What to call in place of the learner, so that processes learn together.

        To be done before there is an optimiser: with ``fsdp`` the parameters become shares.

        Args:
            learner: a model and its objective, on the device.
            varies: whether there are steps that do not use every parameter that is trained, for a
                reason that cannot be seen in the learner.
        """
        if self.parallel is None:
            return learner
        share_statistics(learner.model, self.device, _summed)
        trained = [p for p in learner.parameters() if p.requires_grad]
        if self.sharded:
            return self._shard(learner)
        if not trained:
            return learner
        with warnings.catch_warnings():  # the newer name of an argument is not in torch 2.11
            warnings.filterwarnings("ignore", "`broadcast_buffers`", FutureWarning)
            return DistributedDataParallel(
                learner,
                device_ids=[self.device] if self.device.type == "cuda" else None,
                broadcast_buffers=False,  # equal by themselves: batch norm's are computed together
                gradient_as_bucket_view=True,
                # Stochastic depth may pass over a block, and not every objective uses the head.
                find_unused_parameters=varies
                or not isinstance(learner.objective, Supervised)
                or bool(drop_paths(learner.model)),
            )

    def _shard(self, learner: Learner) -> nn.Module:
        _let_hooks_into_losses()
        mesh = init_device_mesh(self.device.type, (self.world,))
        # Autocast rounds at each operation; weights travel rounded, gradients are added in full.
        policy = MixedPrecisionPolicy(
            param_dtype=AUTOCAST.get(self.precision),
            reduce_dtype=self.dtype,
            cast_forward_inputs=False,
        )
        for block in blocks_of(learner):
            fully_shard(block, mesh=mesh, mp_policy=policy)
        fully_shard(learner, mesh=mesh, mp_policy=policy)
        return learner

    def suit(self, optimizer: optim.Optimizer) -> None:
        """Set an optimiser's implementation to one that can work on shares."""
        if self.sharded and isinstance(optimizer, optim.SGD):
            for group in optimizer.param_groups:
                group["fused"] = False

    @contextlib.contextmanager
    def forward(self, runner: nn.Module | None = None, last: bool = True) -> Iterator[None]:
        """The context of a forward and backward pass.

        Args:
            runner: what `wrap` gave.
            last: whether the gradients are complete after this pass. Until then the processes
                keep theirs to themselves.
        """
        dtype = AUTOCAST.get(self.precision)
        with contextlib.ExitStack() as stack:
            if self.sharded and runner is not None:
                runner.set_requires_gradient_sync(last)  # pyrefly: ignore
            elif isinstance(runner, DistributedDataParallel) and not last:
                stack.enter_context(runner.no_sync())
            stack.enter_context(torch.autocast(self.device.type, dtype, enabled=dtype is not None))
            yield

    def reshard(self, runner: nn.Module) -> None:
        """Let go of weights that were gathered for a forward pass without a backward pass."""
        if self.sharded:
            runner.reshard()  # pyrefly: ignore

    def backward(self, loss: Tensor) -> None:
        """Gradients of a loss, added to those that are there."""
        self.scaler.scale(loss).backward()

    def norm(self, parameters: Sequence[nn.Parameter], optimizer: optim.Optimizer) -> Tensor:
        """The global norm of the complete gradients, at their true scale; `whole` reads it."""
        self.scaler.unscale_(optimizer)
        return nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])

    def step(
        self,
        parameters: Sequence[nn.Parameter],
        optimizer: optim.Optimizer,
        norm: Tensor,
        clip_norm: float | None,
    ) -> None:
        """Clip and apply the gradients, and forget them.

        Args:
            norm: from `norm`, finite.
            clip_norm: the largest that is let through; None for any.
        """
        if clip_norm is not None:
            nn.utils.clip_grads_with_norm_(parameters, clip_norm, norm)
        self.scaler.step(optimizer)
        self.forget(optimizer)

    def forget(self, optimizer: optim.Optimizer) -> None:
        """Drop the gradients; a loss scale that they overflowed at gets smaller."""
        self.scaler.update()
        optimizer.zero_grad(set_to_none=True)

    def total(self, numbers: Tensor) -> Tensor:
        """The sum over all processes of a small tensor on the device."""
        if self.world > 1:
            dist.all_reduce(numbers)
        return numbers

    def gather(self, mine: list[T]) -> list[T]:
        """The processes' lists, one after the other; every process gets all of it."""
        if self.world == 1:
            return mine
        every: list[Any] = [None] * self.world
        dist.all_gather_object(every, mine)
        return [item for part in every for item in part]

    def agree(self, decide: Callable[[], T]) -> T:
        """What the first process decides; the others wait to be told.

        Raises:
            Error: the first process's, in every process.
        """
        if self.world == 1:
            return decide()
        told: list[Any] = [None, None]
        if self.first:
            try:
                told[0] = decide()
            except Error as error:
                told[1] = error
        dist.broadcast_object_list(told, src=0)
        if told[1] is not None:
            raise told[1]
        return told[0]

    @contextlib.contextmanager
    def together(self) -> Iterator[None]:
        """Work with the other processes; where one of them dies, this says so in a sentence.

        Raises:
            Error: another process ended too early.
        """
        if self.watch is not None:
            self.watch.calm = False
        try:
            yield
        except KeyboardInterrupt:  # all were asked to stop, and have saved
            if self.watch is not None:
                self.watch.calm = True
            raise
        except RuntimeError as error:
            if self.watch is None or not _of_transport(error):
                raise
            raise Error(lost_process(self.watch.who(), self.world)) from error
        if self.watch is not None:
            dist.barrier()
            self.watch.calm = True

    # Tensors that are shared out

    def whole(self, tensor: Tensor) -> Tensor:
        """All of a tensor, gathered from its shares; every process must ask."""
        return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor

    def share(self, tensor: Tensor, like: Tensor | None) -> Tensor:
        """This process's share of a whole tensor, cut as ``like`` is; whole if that is whole."""
        if not isinstance(like, DTensor) or like.shape != tensor.shape:
            return tensor
        placed = tensor.to(like.device)
        return distribute_tensor(placed, like.device_mesh, like.placements, src_data_rank=None)

    def save_shares(self, tensors: Mapping[str, Tensor], folder: Path) -> dict[str, str]:
        """Write every process's shares into a folder: torch's distributed checkpoint.

        Returns:
            The SHA-256 of each file by its name, of all processes.

        Raises:
            Error: a process could not write; what is in the folder is worth nothing.
        """
        try:
            dcp.save(dict(tensors), storage_writer=dcp.FileSystemWriter(folder))
            mine = [p for p in folder.iterdir() if p.name.startswith(f"__{self.rank}_")]
            mine += [folder / ".metadata"] if self.first else []
            hashes = [(path.name, sha256_of(path)) for path in mine]
        except (dcp.CheckpointException, OSError) as error:
            causes = error.failures.values() if hasattr(error, "failures") else [(error, None)]
            raise next((cause for cause, _ in causes), error) from error
        return dict(sorted(self.gather(hashes)))

    def load_shares(
        self, folder: Path, like: Callable[[str, tuple[int, ...]], Tensor | None]
    ) -> dict[str, Tensor]:
        """Read a folder of `save_shares`, whatever number of processes wrote it.

        Args:
            like: from a tensor's name and shape to one that is shared out as it shall be, or None
                for a whole tensor.
        """
        reader = dcp.FileSystemReader(folder)
        tensors: dict[str, Tensor] = {}
        for name, about in reader.read_metadata().state_dict_metadata.items():
            if isinstance(about, TensorStorageMetadata):
                pattern, dtype = like(name, tuple(about.size)), about.properties.dtype
                if isinstance(pattern, DTensor):
                    tensors[name] = torch.empty_like(pattern, dtype=dtype)
                else:
                    tensors[name] = torch.empty(about.size, dtype=dtype)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "torch.distributed is disabled")
            dcp.load(tensors, storage_reader=reader, no_dist=not self.sharded)
        return tensors


def first_process() -> bool:
    """Whether this is the first or only process, before there is an engine."""
    return os.environ.get("RANK", "0") == "0"


def blocks_of(module: nn.Module) -> list[nn.Module]:
    """The repeated blocks of a model or an objective, outermost ones alone, in order."""
    found: list[nn.Module] = []
    for child in module.children():
        holds = any(p.requires_grad for p in child.parameters())
        if type(child).__name__.endswith(BLOCKS) and holds:
            found.append(child)
        else:
            found += blocks_of(child)
    return found


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that there is no memory for a tensor, on any device."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error)


@functools.cache
def _let_hooks_into_losses() -> None:
    """Hooks find the tensors of an output through this; torch warns of a second time."""
    _pytree.register_dataclass(Loss)


@functools.cache
def _join(device: torch.device) -> tuple[int, int, Watch]:
    """Meet the other processes; once in a process's life."""
    if device.type == "cuda":
        torch.cuda.set_device(device)
    try:
        # On CUDA too, gloo carries what is in the host's memory: words, names, decisions.
        dist.init_process_group("gloo" if device.type == "cpu" else "cpu:gloo,cuda:nccl")
        rank, world = dist.get_rank(), dist.get_world_size()

        def share(value: tuple[int, str]) -> tuple[int, str]:
            told = [value]
            dist.broadcast_object_list(told, src=0)
            return told[0]

        watch = Watch(rank, world, os.environ.get("MASTER_ADDR", "127.0.0.1"), share)
    except (RuntimeError, OSError, ValueError) as error:
        first_line = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise Error(
            f"the processes could not meet ({first_line}): look at torchrun's --rdzv-endpoint, "
            "--nnodes and --nproc-per-node on every machine"
        ) from error
    atexit.register(_leave, watch)
    return rank, world, watch


def _leave(watch: Watch) -> None:
    if watch.calm:
        watch.leave()
        dist.destroy_process_group()


def _of_transport(error: RuntimeError) -> bool:
    text = str(error)
    return isinstance(error, dist.DistError) or any(
        word in text for word in ("gloo", "Gloo", "NCCL", "onnection closed", "onnection reset")
    )


class _Summed(torch.autograd.Function):
    """A sum over processes that gradients flow through."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        x = x.clone()
        dist.all_reduce(x)
        return x

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        gradient = gradients[0].contiguous().clone()
        dist.all_reduce(gradient)
        return gradient


def _summed(x: Tensor) -> Tensor:
    return _Summed.apply(x)  # pyrefly: ignore
