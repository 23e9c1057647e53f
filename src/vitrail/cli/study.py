"""`vitrail study`."""

from __future__ import annotations  # hints name tyro, which is imported when they are read

import inspect
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Literal, get_type_hints

from vitrail.cli.arguments import again, arg, settings
from vitrail.cli.output import print_json
from vitrail.studies.flags import KINDS, KINDS_OF


def study(
    kind: Annotated[str, arg("KIND")],
    data: Annotated[str, arg("DATA")],
    /,
    *,
    out: Annotated[Path, arg("DIR")],
    models: Annotated[tuple[str, ...], arg("MODEL")] = (),
    sizes: Annotated[tuple[int, ...], arg("N")] = (),
    durations: Annotated[tuple[str, ...], arg("LENGTH")] = (),
    seeds: Annotated[int, arg("N")] = 3,
    first_seed: Annotated[int, arg("N")] = 0,
    preset: Annotated[str, arg("NAME")] = "",
    mode: Annotated[str, arg("fixed|tuned")] = "",
    axis: Annotated[tuple[str, ...], arg("NAME")] = (),
    change: Annotated[tuple[str, ...], arg("LABEL:KEY=VALUE")] = (),
    samples: Annotated[int | None, arg("N")] = None,
    max_macs: Annotated[float | None, arg("MACS")] = None,
    recipe: Annotated[str, arg("NAME")] = "",
    image_size: Annotated[int | None, arg("PIXELS")] = None,
    batch_size: Annotated[int | None, arg("N")] = None,
    held_out: Annotated[float, arg("SHARE")] = 0.1,
    most_test: Annotated[int | None, arg("N")] = None,
    image_column: Annotated[str | None, arg("NAME")] = None,
    label_column: Annotated[str | None, arg("NAME")] = None,
    jobs: Annotated[int, arg("N")] = 1,
    device: Annotated[Literal["cpu", "cuda"] | None, arg("cpu|cuda")] = None,
    keep: Annotated[Literal["models", "nothing"], arg("models|nothing")] = "models",
    intervals: bool = False,
    dry_run: bool = False,
    figures_only: bool = False,
    json: bool = False,
    set: Annotated[tuple[str, ...], arg("KEY=VALUE")] = (),
) -> int:
    """Compare models under control: many runs, their records, and what they show.

    Example: vitrail study data-size photos/ --models B/16 R50x1 --sizes 500 2000 --out study

    Kinds, each with a help of its own (vitrail study KIND --help):
    - data-size: accuracy over the number of pictures
    - scaling: accuracy over compute; would more data, more time or a larger model help?
    - ablation: one thing changed at a time, and what the change is worth
    - search: a CvT's strides and MLP ratios under a limit of arithmetic

    The same command again goes on where it was killed. Several processes and several machines may
    give it on one shared folder, or torchrun -m vitrail study: each run is done once.

    Args:
        kind: data-size, scaling, ablation or search.
        data: As of `vitrail train`, with a test split.
        out: The study's folder: records.jsonl, report.html, figures, and each run's own folder.
        models: NAME, or LABEL=NAME:KEY=VALUE:... with fields of the model or (with a dot) of the
            recipe changed.
        sizes: Of data-size, ablation and search: numbers of training pictures, 0 for all; the
            latter two take one.
        durations: Lengths of runs, as 500steps, 3epochs or 20000examples.
        seeds: How many times each run is repeated, with another seed.
        first_seed: The first of them.
        preset: Of data-size and scaling: a list of models and sizes by name: quick, page; of
            scaling also paper.
        mode: Of data-size: fixed hyper-parameters with early stopping, or tuned for every size and
            then fine-tuned. What --set says is not tuned; its optim. and schedule. are those of
            the training, and the fine-tuning has its own.
        axis: Of ablation: one or more of pooling, position, optimizer, depth, width, mlp_width,
            patch, cvt_embedding, cvt_projection, cvt_position, cvt_kv_stride, botnet, t2t,
            averaging, self_supervised. `--axis list` says what each asks.
        change: Of ablation: a change of your own, "LABEL:KEY=VALUE KEY=VALUE", or a file of JSON,
            {"LABEL": {"KEY": VALUE}}; as many as there are.
        samples: Of search: how many architectures are drawn; 16 by default.
        max_macs: Of search: the most multiply-adds of an architecture, as 4e6.
        recipe: Of every run; scratch by default.
        image_size: Pixels; the models' own, or small pictures' own, by default.
        batch_size: Images a step; the recipe's by default.
        held_out: Share of train to validate on, where there is no val.
        most_test: Measure on at most so many test pictures.
        image_column: The column or shard field of the pictures; found by default.
        label_column: The column or shard field of the labels; found by default.
        jobs: Processes on this machine.
        device: The best there is by default.
        keep: Of finished runs: their models, or nothing.
        intervals: Insist on 95 % intervals, which take at least two seeds.
        dry_run: Say what it would cost, and stop.
        figures_only: Draw everything again from the records, and do nothing else.
        json: Print one JSON object on stdout at the end.
        set: Any field of every run's recipe: --set optim.lr=0.003.
    """
    from vitrail.studies.definition import Ask
    from vitrail.studies.study import How
    from vitrail.studies.study import figures_only as draw
    from vitrail.studies.study import study as work

    if "list" in axis:
        from vitrail.studies.comparisons import COMPARISONS

        for one in COMPARISONS.values():
            print(f"{one.name:<16} {one.asks} ({', '.join(one.families)})")
        return 0
    if figures_only:
        summary = draw(kind, out, intervals=intervals or None, command=again())
    else:
        ask = Ask(
            models=models,
            sizes=sizes,
            durations=durations,
            seeds=seeds,
            first_seed=first_seed,
            mode=mode,
            axes=axis,
            recipe=recipe,
            settings=settings(set),
            image_size=image_size,
            batch_size=batch_size,
            preset=preset,
            limit=max_macs,
            changes=change,
            samples=samples,
        )
        summary = work(
            kind,
            data,
            out,
            ask,
            how=How(
                device=device,
                jobs=jobs,
                keep=keep,
                dry_run=dry_run,
                intervals=intervals or None,
                live=True,
            ),
            held_out=held_out,
            most_test=most_test,
            columns={"image_column": image_column, "label_column": label_column},
            say=lambda line: print(line, file=sys.stderr, flush=True),
            command=again(),
        )
    if not summary:  # one of several processes, of which the first shows the study
        return 0
    if json:
        print_json(summary)
    elif not dry_run:
        for sentence in summary["answer"]:
            print(sentence[0].upper() + sentence[1:])
        print(f"report {out / 'report.html'}")
    return 0


ABOUT = {  # what the help of a kind begins with
    "data-size": """Compare models over the number of pictures that they learn from.

    Example: vitrail study data-size photos/ --models B/16 R50x1 --sizes 500 2000 --out study""",
    "scaling": """Compare models over compute: would more data, more time or a larger model help?

    Example: vitrail study scaling photos/ --models B/32 B/16 --durations 9epochs --out study""",
    "ablation": """Change one thing at a time, over several seeds, and say what the change is worth.

    Example: vitrail study ablation photos/ --axis pooling position --out study""",
    "search": """Draw a CvT's strides and MLP ratios under a limit of arithmetic, and show the best.

    Example: vitrail study search photos/ --models cvt_13_224 --max-macs 4e9 --out study""",
}
OWN = {  # what a flag is to one kind, where it is not the same to all that take it
    ("data-size", "sizes"): "Numbers of training pictures; 0 for all.",
    ("ablation", "sizes"): "The number of training pictures, all by default; of self_supervised "
    "that of pictures with labels, a tenth by default.",
    ("search", "sizes"): "The number of training pictures; all by default.",
    ("data-size", "preset"): "A list of models and sizes by name: quick, page.",
    ("scaling", "preset"): "A list of models and durations by name: quick, page, paper.",
    ("data-size", "durations"): "The length of every run, as 500steps, 3epochs or 20000examples.",
    ("ablation", "durations"): "The length of every run, as 500steps, 3epochs or 20000examples; "
    "of self_supervised a second one, of what comes before.",
    ("search", "durations"): "The length of every run, as 500steps, 3epochs or 20000examples.",
}


def kind_of(words: Sequence[str]) -> str | None:
    """The kind of study that a command names: its first word, but for ``--help``."""
    first = next((word for word in words if word not in ("-h", "--help")), "")
    return first if first in KINDS else None


def of_kind(kind: str) -> Callable[..., int]:
    """The verb as the help of one kind shows it: without that word, with the flags it takes."""

    def narrowed(data, /, **named):
        return study(kind, data, **named)

    others = {flag[2:].replace("-", "_") for flag, kinds in KINDS_OF.items() if kind not in kinds}
    whole = inspect.signature(study)
    taken = [p for p in whole.parameters.values() if p.name not in {"kind", *others}]
    narrowed.__signature__ = whole.replace(parameters=taken)  # pyrefly: ignore
    narrowed.__annotations__ = get_type_hints(study, include_extras=True)
    _, start, rest = (inspect.getdoc(study) or "").partition("The same command again")
    flags = re.sub(f"Of {kind}: (.)", lambda found: found[1].upper(), start + rest)
    own = [f"    {flag}: {text}" for (of, flag), text in OWN.items() if of == kind]
    # Of two lines of a flag, the last counts.
    narrowed.__doc__ = "\n".join([inspect.cleandoc(ABOUT[kind]), "", flags, *own])
    return narrowed
