"""The command line: one file a verb, each importing its work only when it is called.

Results go to stdout, everything else to stderr. Exit status:
0 done; 2 the user's error, in one line; 3 a gate refused; 130 after Ctrl-C, with everything
saved; 1 is a bug of ours.
"""

import os

# libgomp's threads spin while they wait: with one other job on the machine, training falls to a
# tenth. This costs nothing on an idle machine, and must be set before torch is imported.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
if "RANK" in os.environ:  # one of several processes: each would repeat torch's remarks
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")

import sys
import warnings
from collections.abc import Callable, Sequence
from inspect import getdoc  # the verb of this name takes the module's place here

from vitrail import __version__
from vitrail.cli import arguments
from vitrail.cli.compare import compare
from vitrail.cli.convert import convert
from vitrail.cli.demo import demo
from vitrail.cli.doctor import doctor
from vitrail.cli.evaluate import evaluate
from vitrail.cli.export import export
from vitrail.cli.inspect import inspect as inspect_model
from vitrail.cli.models import models
from vitrail.cli.parse import asks_for_help, parsed
from vitrail.cli.plan import plan
from vitrail.cli.predict import predict
from vitrail.cli.probe import probe
from vitrail.cli.serve import serve
from vitrail.cli.study import kind_of, of_kind, study
from vitrail.cli.train import train
from vitrail.cli.verify import verify
from vitrail.kit.errors import Error, did_you_mean

USAGE = """usage: vitrail VERB ...

Vision Transformers for image classification: train, evaluate, use.

{verbs}

  vitrail VERB --help   what a verb takes, with an example
  vitrail --version     the version
"""
VERBS: dict[str, Callable[..., int]] = {
    "demo": demo,
    "train": train,
    "probe": probe,
    "evaluate": evaluate,
    "predict": predict,
    "inspect": inspect_model,
    "doctor": doctor,
    "export": export,
    "serve": serve,
    "models": models,
    "convert": convert,
    "verify": verify,
    "plan": plan,
    "compare": compare,
    "study": study,
}


def main(words: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status."""
    argv = list(sys.argv[1:] if words is None else words)
    arguments.given[:] = argv
    debug = "--debug" in argv
    if debug:
        argv.remove("--debug")
    if not argv or argv[0] in ("-h", "--help"):
        lines = [f"  {name:<10} {_first_line(verb)}" for name, verb in VERBS.items()]
        print(USAGE.format(verbs="\n".join(lines)), end="")
        return 0
    if argv[0] == "--version":
        print(f"vitrail {__version__}")
        return 0
    # Pillow warns of what is odd in a picture; what matters of it becomes a sentence of ours.
    warnings.filterwarnings("ignore", module="PIL")
    try:
        if argv[0] not in VERBS:
            near = did_you_mean(argv[0], VERBS) or f"; the verbs are {', '.join(VERBS)}"
            raise Error(f"there is no verb {argv[0]!r}{near}")
        name, rest = argv[0], arguments.gathered(argv[1:])
        verb = VERBS[name]
        if name == "study" and (kind := kind_of(rest)):
            name = f"study {kind}"
            verb = of_kind(kind) if asks_for_help(rest) else verb
        call = parsed(verb, name, rest)
        return call()
    except Error as error:
        if debug:
            raise
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as stop:
        print(f"\n{str(stop) or 'stopped'}", file=sys.stderr)
        return 130
    except BrokenPipeError:  # `vitrail models | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        if debug or error.filename is None:
            raise
        print(f"error: {error.filename}: {error.strerror}", file=sys.stderr)
        return 2
    except Exception:
        if not debug:
            print("this is a bug in Vitrail: please report it with these lines", file=sys.stderr)
        raise


def _first_line(verb: Callable[..., int]) -> str:
    return (getdoc(verb) or "").partition("\n")[0]
