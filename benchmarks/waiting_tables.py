"""The tables of what waits less, or for slower ones: the parameter server, DiLoCo, balancing."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from benchmarks.common import RESULTS
from benchmarks.markdown import footnote, load, results, spread, table
from distrib.parallel.balance import share_out

TRAINED = {
    "minilm": "MiniLM fine-tuned",
    "minilm-more": "MiniLM fine-tuned",
    "minilm-again": "MiniLM fine-tuned once more",
    "minilm-busy": "MiniLM fine-tuned while four to sixteen other processes wanted the two cores",
    "tiny_bert": "two small layers from scratch",
}
KILLED = {"lm": "a small language model", "tiny": "news articles, learnt by heart"}
WITHIN = 0.01
"""How far behind a synchronous run's accuracy a late one may be before it is named."""


def links() -> Iterator[str]:
    """What a synchronous step of the parameter server takes, and how much of it the link does."""
    measured = sorted(results("parameter-server-*mbit.json"), key=lambda result: result["settings"]["mbit"])
    if not measured:
        return
    yield "## A synchronous step of the parameter server: two workers and a server on links of their own\n"
    yield (
        "*share*: what the link alone takes, of what a step took. The model's bytes cross the server's link "
        "four times, as two gradients and two answers: the update is clipped by the norm of the whole "
        "gradient, and left out where that is not finite, so no weight leaves before the last gradient has "
        "come. Could both ways be used at one time, the link would take half as long, and the share be half "
        "as large. With DDP the bytes cross each link once, both ways at one time.\n"
    )
    rows = []
    for result in measured:
        rate = f"{result['settings']['mbit']} Mbit/s"
        for name, summary in result["summary"].items():
            seconds, share = spread(summary["seconds"], digits=2), spread(summary["share"], digits=3)
            rows.append([f"`strategy={name}`", rate, seconds, share])
    yield table(["", "link", "seconds a step", "share"], rows)
    yield footnote(measured[0])


def slow_link() -> Iterator[str]:
    """Seconds and bytes until the same held-out loss."""
    measured = [(load(path), path.with_suffix(".svg").name) for path in RESULTS.glob("time-to-loss*.json")]
    for result, picture in sorted(measured, key=lambda pair: _seeds(pair[0])):
        settings, which = result["settings"], _listed(_seeds(result))
        yield f"## Until the same held-out loss: two hosts on links of {settings['rate']}, {which}\n"
        yield (
            f"A small language model, from one checkpoint of step {settings['shared_steps']} to step "
            f"{settings['steps']}, until a held-out loss of {settings['target']:.2f}. Bytes are a worker's, "
            "those of evaluations included. A seed has its own first weights, order of the data and dropout, "
            "so what is said of DDP's is the median over the same seeds.\n"
        )
        rows = [
            [
                f"`{name}`",
                str(len(settings["seeds"][name])),
                spread(summary["seconds"]),
                f"{summary['seconds_of_ddp']['median']:.2f}",
                spread({key: value / 1e6 for key, value in summary["bytes"].items()}),
                f"{summary['bytes_of_ddp']['median']:.3f}",
                spread(summary["final_loss"], digits=3),
                _percent(summary["loss_over_ddp"]),
                f"{summary['times_fewer_bytes']['median']:.1f}",
            ]
            for name, summary in result["summary"].items()
        ]
        until = ["seconds", "of DDP's", "MB", "of DDP's"]
        header = ["", "seeds", *until, "loss after all steps", "over DDP's", "times fewer bytes a step"]
        yield table(header, rows)
        yield f"![Held-out loss over seconds and over bytes]({RESULTS.name}/{picture})\n"
        yield footnote(result)


def _seeds(result: Mapping[str, Any]) -> list[int]:
    return sorted({seed for seeds in result["settings"]["seeds"].values() for seed in seeds})


def _listed(seeds: Sequence[int]) -> str:
    return f"seed{'s' if len(seeds) > 1 else ''} {', '.join(map(str, seeds))}"


def _percent(summary: Mapping[str, float]) -> str:
    median, low, high = (round(summary[key], 3) + 0.0 for key in ("median", "lowest", "highest"))  # no -0
    return f"{median:+.1%} ({low:+.1%} to {high:+.1%})"


def late() -> Iterator[str]:
    """The parameter server's modes after equally many examples, and which of them end up worse than sync."""
    for path in sorted(RESULTS.glob("convergence-*.json")):
        result, model = load(path), TRAINED[path.stem.partition("-")[2]]
        settings = result["settings"]
        which = f"{model}, {_listed(settings['seeds'])}"
        yield f"## Accuracy of the parameter server's modes after the same number of examples: {which}\n"
        yield (
            f"BBC news, {settings['steps']} steps, half of the articles held out; *behind sync* is the mean "
            "over seeds. Staleness is the mean number of updates between a gradient's weights and its own "
            "update; one of `async` is a single worker's. All modes have the learning rate that suits sync.\n"
        )
        rows, worse = [], []
        for name, summary in result["summary"].items():
            mode, _, workers = name.partition("-on-")
            behind = statistics.fmean(numbers["lacks"] for numbers in result["rounds"][name])
            if behind > WITHIN:
                worse.append(f"`{mode}` on {workers} ({behind:.1%})")
            accuracy = spread(summary["accuracy"], digits=3)
            rows.append(
                [f"`{mode}`", workers, accuracy, f"{behind:+.1%}", f"{summary['staleness']['median']:.2f}"]
            )
        yield table(["", "workers", "held-out accuracy", "behind sync", "staleness"], rows)
        yield f"More than {WITHIN:.0%} behind sync: {', '.join(worse) or 'none'}.\n"
        yield footnote(result)


def killed() -> Iterator[str]:
    """The held-out loss of runs whose workers were killed again and again, and whether it is as without."""
    for path in sorted(RESULTS.glob("faults-*.json")):
        result, task = load(path), KILLED[path.stem.partition("-")[2]]
        settings = result["settings"]
        yield f"## {settings['kills']} workers killed in one run of the parameter server: {task}\n"
        rows = [
            [
                name,
                str(len(result["rounds"][name])),
                spread(summary["loss"], digits=3),
                f"{summary['missing']['median']:.1%}",
                f"{summary['redone']['median']:g}",
                spread(summary["seconds"]),
            ]
            for name, summary in result["summary"].items()
        ]
        header = ["", "runs", "held-out loss", "examples in no update", "steps run again", "seconds"]
        yield table(header, rows)
        inside = f"{settings['inside']} of {len(result['rounds']['broken'])}"
        over = [f"{numbers['over_own']:+.1e}" for numbers in result["rounds"]["broken"]]
        yield (
            f"{settings['steps']} steps of three workers, of which two are killed at random moments and "
            "started again; meanwhile the others run their microbatches (`strategy.balance=measured`), the "
            "step of the loss once more. Against the unbroken run of its own seed a broken one's loss is "
            f"higher by a share of {', '.join(over)}: gradients are added up in another order. {inside} are "
            "strictly between the lowest and the highest of the unbroken runs; one whose seed is itself the "
            "lowest or the highest can fall on either side.\n"
        )
        yield footnote(result)


def uneven() -> Iterator[str]:
    """A step's time where one rank is slow, against what the added speeds allow."""
    for result in results("balance-*.json"):
        settings = result["settings"]
        yield f"## One of {settings['num_processes']} ranks that train {settings['slower']:g} times slower\n"
        yield (
            f"A microbatch takes {settings['pause']:g} s, and the model's own arithmetic. That microbatches "
            f"are whole allows {_whole(settings):.2f} at best.\n"
        )
        rows = [
            [
                f"`{name}`",
                spread(summary["step_seconds"], digits=2),
                spread(summary["over_ideal"], digits=2),
                f"{summary['slowest_ranks_share']['median']:g} of {settings['microbatches']}",
            ]
            for name, summary in result["summary"].items()
        ]
        yield table(["", "seconds per step", "over what added speeds allow", "the slow rank runs"], rows)
        yield footnote(result)


def _whole(settings: Mapping[str, Any]) -> float:
    """A step over what the added speeds allow, where only the microbatches' pauses are waited for."""
    speeds = [1.0] * (settings["num_processes"] - 1) + [1 / settings["slower"]]
    shares = share_out(speeds, settings["microbatches"])
    longest = max(share / speed for share, speed in zip(shares, speeds, strict=True))
    return longest / (settings["microbatches"] / sum(speeds))


def drills() -> Iterator[str]:
    """What came of jobs on several hosts that were broken on purpose (``tests/launch/drills.py``)."""
    path = RESULTS / "drills.json"
    if not path.exists():
        return
    kinds: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for verdict in json.loads(path.read_text()):
        kinds.setdefault((verdict["drill"], verdict["launcher"]), []).append(verdict)
    yield "## Jobs on several hosts, broken on purpose\n"
    yield (
        "By `tests/launch/drills.py`, on hosts made of namespaces with an ssh server each. A job whose "
        "rank is killed, whose host loses its power or is cut off has to come back from its last "
        "checkpoint (of every 4th step) and end with the losses of the unbroken run, to 1e-5; one whose "
        "launcher is killed or interrupted has to end. *noticed*: seconds until the launcher said so or "
        "had ended, of one that was killed until its ranks had; *back*: until the first step after it; "
        "*left*: processes of the job on all hosts afterwards. Medians, and the longest, on a machine of "
        "two cores that did other things as well.\n"
    )
    rows = [
        [
            drill,
            launcher,
            f"{sum(each['ok'] for each in verdicts)} of {len(verdicts)}",
            _longest(verdicts, "noticed"),
            _longest(verdicts, "back") if any(each["back"] for each in verdicts) else "",
            str(max(each["lost"] for each in verdicts)),
            str(sum(each["left"] for each in verdicts)),
        ]
        for (drill, launcher), verdicts in sorted(kinds.items())
    ]
    yield table(["", "launcher", "as asked", "noticed", "back", "steps lost, most", "left"], rows)


def _longest(verdicts: Sequence[Mapping[str, Any]], number: str) -> str:
    values = [each[number] for each in verdicts]
    return f"{statistics.median(values):.1f} ({max(values):.1f})"
