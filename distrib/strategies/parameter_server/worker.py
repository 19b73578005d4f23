"""A rank that trains: gradients leave while backward runs, weights arrive in the order forward needs them."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial

import torch
from torch import Tensor, nn

from distrib.core import IGNORED, Batch, DataShard, Job, StepResult
from distrib.errors import LaunchError
from distrib.parallel.accumulate import accumulate
from distrib.parallel.balance import Speeds
from distrib.parallel.hooks import on_gradients
from distrib.parallel.norm import total_norm
from distrib.parallel.reduce import flatten, unflatten
from distrib.parallel.replica import Replica
from distrib.parallel.state import load_weights
from distrib.state import StateReader, StateWriter
from distrib.strategies.parameter_server import state
from distrib.strategies.parameter_server.downlink import Downlink
from distrib.strategies.parameter_server.feedback import Feedback
from distrib.strategies.parameter_server.layout import Layout
from distrib.strategies.parameter_server.link import Link, exchange_all
from distrib.strategies.parameter_server.outbox import Outbox
from distrib.strategies.parameter_server.packing import Packing
from distrib.strategies.parameter_server.session import Message, Op, Session
from distrib.strategies.parameter_server.spent import Spent
from distrib.strategies.parameter_server.uplink import SentPush, Uplink
from distrib.strategies.parameter_server.vectors import Vectors


class Worker:
    """The whole model on one device, whose weights are the servers'.

    Parameters and gradients are views of one vector per bucket, so nothing is packed to be sent. On an
    accelerator the vectors have twins in the host's memory, which is what gloo sends.

    Args:
        replica: the model; its optimizer is never stepped.
        links: one per server, in order.
        number: this worker's, of ``num_workers``.
        packing: how its gradients are sent; None: as they are.
        own_norm: the mode needs the norm of this worker's own gradient.
        takes_weights: a push is answered with the weights.
        speeds: by which microbatches are shared out; None: in turn.
    """

    def __init__(
        self,
        job: Job,
        replica: Replica,
        layout: Layout,
        *,
        parameters: Mapping[str, nn.Parameter],
        links: Sequence[Link],
        number: int,
        num_workers: int,
        packing: Packing | None,
        own_norm: bool,
        takes_weights: bool,
        speeds: Speeds | None = None,
    ) -> None:
        self.job, self.replica, self.layout, self.links = job, replica, layout, links
        self.parameters = parameters
        self.stop_at = self.done = 0
        self._redone = 0
        """How often this worker knows that any step has been run again."""
        self.versions = [0] * len(links)
        """Of the weights held, by server: each counts its own updates."""
        self.number, self.num_workers, self._own_norm, self._speeds = number, num_workers, own_norm, speeds
        self._weights, self._gradients = Vectors(layout, parameters), Vectors(layout, parameters)
        self._takes_weights = takes_weights
        self._bucket_of = {name: n for n, bucket in enumerate(layout.buckets) for name in bucket.starts}
        self._missing: list[set[str]] = []
        self._touched: set[str] = set()
        self._is_last = True
        self._meetings = 0
        self.spent = Spent()
        self._down = Downlink(layout, self._weights, links=links, spent=self.spent)
        self._up = Uplink(layout, links=links, spent=self.spent, settle=self._down.settle)
        self._outbox: Outbox | None = None
        if packing is not None:
            errors = Feedback(layout, parameters, worker=number, num_workers=num_workers)
            self._outbox = Outbox(packing, self._gradients, errors if packing.loses else None)
        for name, parameter in parameters.items():
            self._weights.hold(name, parameter.data)
            parameter.data = self._weights.view(name)
        on_gradients(parameters, self._ready)

    @property
    def shard(self) -> DataShard:
        """This worker's microbatches."""
        if self._speeds is None:
            return DataShard(index=self.number, count=self.num_workers)
        return DataShard(index=self.number, count=self.num_workers, owners=self._speeds.owners)

    def wait_in_forward(self, users: Sequence[tuple[nn.Module, set[str]]]) -> None:
        """Lets each module's forward wait for the weights it needs; until now training waits for all.

        A compiled model waits for all before it runs: a wait inside of it would cut its graph.
        """
        for module, names in users:
            buckets = sorted({self._bucket_of[name] for name in names})
            module.register_forward_pre_hook(lambda *_, buckets=buckets: self._down.arrive(buckets))

    def train_step(self, microbatches: Sequence[Batch], step: int) -> StepResult:
        """Sends this shard's gradients of ``step`` and asks for the next weights."""
        self._up.begin(Op.STEP, step=step, bases=self.versions, redone=self._redone)
        self._meetings = 0
        targets = targets_of(microbatches)
        self._prepare(targets)
        with self.spent.on_arithmetic(microbatches=len(microbatches)):
            loss = accumulate(
                self.replica.module,
                microbatches,
                job=self.job,
                step=step,
                device=self.replica.device,
                forward_context=self.replica.forward_context,
                hold_sync=self._hold,
            ).item()  # of an accelerator's, when all that was asked of it is done
        push = self._finish_push(loss, targets, microbatches[0].step_targets)
        if not self._up.keeps:
            self._gradients.clear()  # while the servers work
        result = self._hear_result(push)
        if self._up.keeps:
            self._gradients.clear()
        if self._outbox is not None:
            self._outbox.finish(counts=not result.redo)
        if not result.redo:
            self.done = step + 1
            self.spent.steps += 1
        return result

    def _prepare(self, targets: int) -> None:
        self._touched = set()
        if self._outbox is not None:
            self._outbox.begin(targets=targets)
        self._missing = [set(bucket.starts) for bucket in self.layout.buckets]
        for name, parameter in self.parameters.items():
            parameter.grad = self._gradients.view(name)

    @contextmanager
    def _hold(self) -> Iterator[None]:
        self._is_last = False
        try:
            yield
        finally:
            self._is_last = True

    def _ready(self, name: str, parameter: Tensor) -> None:
        """Backward has added to a gradient; of the last microbatch, a bucket that is complete leaves."""
        self._touched.add(name)
        if not self._is_last:
            return
        number = self._bucket_of[name]
        self._missing[number].discard(name)
        if not self._missing[number]:
            self._send(number)

    def _send(self, number: int) -> None:
        if self._outbox is None:
            self._send_whole(number, self._gradients)
        else:
            self._up.send(number, self._outbox.messages(number, self.layout.buckets[number].cuts))

    def _send_whole(self, number: int, vectors: Vectors) -> None:
        """A bucket as it is."""
        vector = vectors.on_host(number)
        self._up.send(number, [vector[cut] for cut in self.layout.buckets[number].cuts])

    def _finish_push(self, loss: float, targets: int, step_targets: int) -> SentPush:
        for number, missing in enumerate(self._missing):
            if missing:  # of a parameter that had no gradient in the last microbatch
                self._send(number)
        touched = self._touched
        if self._outbox is not None:
            touched = touched | self._outbox.also_sent(self.parameters.keys() - touched)
        # Of what was sent of this worker's own gradient, where the mode asks for it.
        norm = float(total_norm(map(self._gradients.view, self.parameters))) if self._own_norm else 0.0
        return self._up.finish(loss, targets, step_targets, norm, touched=touched)

    def _hear_result(self, push: SentPush) -> StepResult:
        for server, link in enumerate(self.links):
            repeat, expect = partial(self._repeat, push, server), partial(self._expect, server)
            link.attempt(repeat if link.is_new else expect)
        with self.spent.on("waited"):
            heard = exchange_all(self.links, Session.hear, again=partial(self._repeat, push))
        answers = [message.numbers for message in heard]
        norm, loss, updated, stop_at, redone = answers[0][1:6]
        assert len({answer[5] for answer in answers}) == 1, "the servers agree on whether the step is redone"
        self.stop_at, self.versions = int(stop_at), [int(answer[0]) for answer in answers]
        self._learn(heard[0])
        self._redone = int(redone) or self._redone
        if not redone:
            self._up.keep(push, since=min(self.versions))
        dtype = self._weights.host[0].dtype
        return StepResult(
            loss=torch.tensor(loss / self.num_workers, dtype=torch.float64),
            grad_norm=torch.tensor(norm, dtype=dtype),
            updated=bool(updated),
            meet=push.step + 1 == self.stop_at and not redone,
            redo=bool(redone),
        )

    def _learn(self, message: Message) -> None:
        """Takes in what the first server has decided on the shares."""
        if self._speeds is not None:
            for first, speeds in message.text or ():
                self._speeds.learn(speeds, first=first)

    def _repeat(self, push: SentPush, server: int, session: Session) -> None:
        self._up.repeat(push, server, session)
        self._expect(server, session)

    def _expect(self, server: int, session: Session) -> None:
        if self._takes_weights:
            self._down.expect(server, session)

    def settle(self) -> None:
        """Waits until all weights that were asked for are there."""
        self._down.settle()

    def fetch(self) -> None:
        """Takes the servers' weights as they are now."""
        self.settle()
        asks = [partial(self._ask_for_weights, server) for server in range(len(self.links))]
        for link, ask in zip(self.links, asks, strict=True):
            link.attempt(ask)
        answers = [
            link.exchange(Session.hear, again=ask).numbers for link, ask in zip(self.links, asks, strict=True)
        ]
        self.versions = [int(answer[0]) for answer in answers]
        self.settle()

    def _ask_for_weights(self, server: int, session: Session) -> None:
        session.tell(Op.FETCH)
        self._down.expect(server, session)

    def place(self) -> None:
        """Makes this model's weights the servers'. The loss of a server meanwhile ends the job."""
        self.settle()
        self._up.begin(Op.PLACE, step=self.done, bases=self.versions)
        for number in range(len(self.layout.buckets)):
            self._send_whole(number, self._weights)
        for link in self.links:
            if link.error is not None:
                raise link.error
            link.session.hear()

    def eval_step(self, batch: Batch) -> Mapping[str, Tensor]:
        """The task's sums over one batch."""
        self.settle()
        return self.replica.eval_step(batch)

    def save(self, writer: StateWriter, *, leads: bool) -> None:
        """Hands over the servers' state, once every worker is here; ``leads``: this rank writes it."""
        self.meet({"before saving": torch.ones(())})
        if leads:
            self.fetch()
            state.save(self, writer)
        if self._outbox is not None:
            self._outbox.save(writer)

    def load(self, reader: StateReader, *, leads: bool) -> None:
        """Takes a checkpoint, which the rank that ``leads`` gives to the servers too."""
        self.settle()
        load_weights(reader, self.replica.module)
        if leads:
            state.load_optimizer(self, reader)
            self.place()
        if self._outbox is not None:
            self._outbox.load(reader)
        self.meet({"loaded": torch.ones(())})

    def meet(self, sums: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The sums over all workers, by the first server; waits for them."""
        self.settle()
        vector = flatten(sums)
        self._meetings += 1

        def talk(session: Session) -> Tensor:
            session.tell(Op.MEET, self.done, self._meetings, vector.numel())
            session.send(vector)
            session.hear()
            return session.receive(torch.empty_like(vector))

        return unflatten(self.links[0].exchange(talk), sums)

    def tally(
        self, sums: Mapping[str, Tensor], *, per_step: Collection[str], votes: Collection[str]
    ) -> dict[str, Tensor]:
        """The sums of what every worker sent last, this one's included; waits for nobody.

        A step's numbers are this worker's, times the number of workers.
        """
        self.settle()
        others = {name: value for name, value in sums.items() if name not in per_step}
        vector, vote = flatten(others), any(bool(sums[name]) for name in votes)

        def talk(session: Session) -> Tensor:
            session.tell(Op.TALLY, vote, vector.numel())
            session.send(vector)
            self.stop_at = int(session.hear().numbers[0])
            return session.receive(torch.empty_like(vector))

        total = unflatten(self.links[0].exchange(talk), others)
        if not self.may_stop:
            total |= {name: total[name] * 0.0 for name in votes}
        return {**{name: sums[name].double().cpu() * self.num_workers for name in per_step}, **total}

    @property
    def may_stop(self) -> bool:
        """Whether this is the step at which all workers stop, where one has asked to."""
        return 0 < self.stop_at <= self.done

    def measures(self) -> dict[str, float]:
        """This worker's numbers per step, and the first server's, since they were last asked for.

        Of the servers' loads it is the highest; they hold equal parts, and count the same pushes.
        """
        self.settle()
        told = [link.exchange(lambda session: session.ask(Op.FACTS)).text for link in self.links]
        facts: dict[str, float] = told[0] | {"server_load": max(one["server_load"] for one in told)}
        steps = max(self.spent.steps, 1)
        own = {
            **self.spent.taken(),
            "pushed_mb": sum(link.session.sent for link in self.links) / steps / 1e6,
            "pulled_mb": sum(link.session.received for link in self.links) / steps / 1e6,
        }
        for link in self.links:
            link.session.sent = link.session.received = 0
        if self._speeds is not None:
            own["speed_spread"] = self._speeds.spread
        return {"staleness": facts.pop("staleness"), **own, **facts}

    def join(self) -> int:
        """Enters the running job with its weights; the step to begin at."""
        told = -1
        for link in self.links:
            answer = link.exchange(lambda session: session.ask(Op.JOIN, told))  # noqa: B023
            if told < 0:
                told, self._redone = map(int, answer.numbers[:2])
                self._learn(answer)
        self.done = told
        self.fetch()
        return told

    def leave(self) -> None:
        """Says that nothing more will come, and waits until that is known."""
        self.settle()
        for link in self.links:
            link.exchange(lambda session: session.ask(Op.LEAVE))
            with suppress(LaunchError):  # it has answered, and only waits to know that this has come
                link.session.confirm()


def targets_of(microbatches: Sequence[Batch]) -> int:
    """Targets that these microbatches have."""
    return sum(int((batch.tensors["labels"] != IGNORED).sum()) for batch in microbatches)
