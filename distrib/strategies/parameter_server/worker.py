"""A rank that trains: gradients leave while backward runs, weights arrive in the order forward needs them."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn

from distrib.core import IGNORED, Batch, Job, StepResult
from distrib.parallel.accumulate import accumulate
from distrib.parallel.norm import total_norm
from distrib.parallel.reduce import flatten, unflatten
from distrib.parallel.replica import Replica
from distrib.parallel.state import load_weights
from distrib.state import StateReader, StateWriter
from distrib.strategies.parameter_server import state
from distrib.strategies.parameter_server.layout import Layout
from distrib.strategies.parameter_server.link import Link
from distrib.strategies.parameter_server.sent import SentPush, fetched
from distrib.strategies.parameter_server.session import BODY, PULL, PUSH, Op, Pending, Session
from distrib.strategies.parameter_server.vectors import Vectors


class Worker:
    """The whole model on one device, whose weights are the servers'.

    Parameters and gradients are views of one vector per bucket, so nothing is packed to be sent. On an
    accelerator the vectors have twins in the host's memory, which is what gloo sends.

    Args:
        replica: the model; its optimizer is never stepped.
        links: one per server, in order.
        own_norm: the mode needs the norm of this worker's own gradient.
    """

    def __init__(
        self,
        job: Job,
        replica: Replica,
        layout: Layout,
        *,
        parameters: Mapping[str, nn.Parameter],
        links: Sequence[Link],
        num_workers: int,
        own_norm: bool,
    ) -> None:
        self.job, self.replica, self.layout, self.links = job, replica, layout, links
        self.parameters = parameters
        self.version = self.stop_at = self.done = 0
        self.num_workers, self._own_norm = num_workers, own_norm
        self._weights, self._gradients = Vectors(layout, parameters), Vectors(layout, parameters)
        self._bucket_of = {name: n for n, bucket in enumerate(layout.buckets) for name in bucket.starts}
        self._missing: list[set[str]] = []
        self._touched: set[str] = set()
        self._sends: list[tuple[Link, Pending]] = []
        self._arrivals: dict[int, dict[int, Pending]] = {}
        self._kept: list[SentPush] = []
        self._keeps_pushes = any(link.has_backup for link in links)
        self._is_last = True
        self._meetings = 0
        self._waited, self._pushing, self._steps = 0.0, 0.0, 0
        for server, link in enumerate(links):
            link.catch_up = partial(self._repeat_answered, server)
        for name, parameter in parameters.items():
            self._weights.hold(name, parameter.data)
            parameter.data = self._weights.view(name)
            parameter.register_post_accumulate_grad_hook(partial(self._ready, name))  # type: ignore[no-untyped-call]

    def wait_in_forward(self, users: Sequence[tuple[nn.Module, set[str]]]) -> None:
        """Lets each module's forward wait for the weights it needs; until now training waits for all.

        A compiled model waits for all before it runs: a wait inside of it would cut its graph.
        """
        for module, names in users:
            buckets = sorted({self._bucket_of[name] for name in names})
            module.register_forward_pre_hook(lambda *_, buckets=buckets: self._arrive(buckets))

    def train_step(self, microbatches: Sequence[Batch], step: int) -> StepResult:
        """Sends this shard's gradients of ``step`` and asks for the next weights."""
        for link in self.links:
            link.is_new = False
            link.attempt(lambda session: session.tell(Op.STEP, step, self.version))
        self._meetings = 0
        self._prepare()
        loss = accumulate(
            self.replica.module,
            microbatches,
            job=self.job,
            step=step,
            device=self.replica.device,
            forward_context=self.replica.forward_context,
            hold_sync=self._hold,
        )
        self.settle()  # what forward did not use must be there too before it is asked for anew
        self._send_rest()
        trailer = self._send_trailer(
            float(loss), targets_of(microbatches), microbatches[0].step_targets, self._norm()
        )
        push = SentPush(step=step, base=self.version, vectors=self._gradients.host, trailer=trailer)
        if not self._keeps_pushes:
            self._gradients.clear()  # while the servers work
        result = self._hear_result(push)
        if self._keeps_pushes:
            self._gradients.clear()
        self.done, self._steps = step + 1, self._steps + 1
        return result

    def _prepare(self) -> None:
        self._touched = set()
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
        self._send_bucket(number, self._gradients.on_host(number))

    def _send_bucket(self, number: int, vector: Tensor) -> None:
        for link, cut in zip(self.links, self.layout.buckets[number].cuts, strict=True):
            if cut.start < cut.stop:
                self._start_send(link, vector[cut], PUSH + 2 * number)

    def _start_send(self, link: Link, tensor: Tensor, tag: int = BODY) -> None:
        if link.is_new:
            return  # the push is sent again whole
        sending = link.attempt(lambda session: session.start_send(tensor, tag))
        if sending is not None:
            self._sends.append((link, sending))

    def _send_rest(self) -> None:
        """Buckets with a parameter that had no gradient in the last microbatch."""
        for number, missing in enumerate(self._missing):
            if missing:
                self._send(number)

    def _send_trailer(self, *numbers: float) -> Tensor:
        """What completes a push: loss, targets, the step's targets, norm; and who has a gradient."""
        mask = [float(name in self._touched) for bucket in self.layout.buckets for name in bucket.starts]
        trailer = torch.tensor([*numbers, *mask], dtype=torch.float64)
        for link in self.links:
            self._start_send(link, trailer)
        self._finish_sending()
        return trailer

    def _finish_sending(self) -> None:
        began = time.perf_counter()
        for link, sending in self._sends:
            if not link.is_new:
                link.attempt(partial(_wait, sending))
        self._pushing += time.perf_counter() - began
        self._sends = []

    def _norm(self) -> float:
        """Of this worker's own gradient, where the mode asks for it."""
        return float(total_norm(map(self._gradients.view, self.parameters))) if self._own_norm else 0.0

    def _expect_weights(self, server: int, session: Session) -> None:
        """Posts the receipt of every bucket, so that a server's answer needs no further question."""
        for number, bucket in enumerate(self.layout.buckets):
            cut = bucket.cuts[server]
            if cut.start < cut.stop:
                arrival = session.start_receive(self._weights.host[number][cut], PULL + 2 * number)
                self._arrivals.setdefault(number, {})[server] = arrival

    def _hear_result(self, push: SentPush) -> StepResult:
        for server, link in enumerate(self.links):
            repeat, expect = partial(self._repeat, push, server), partial(self._expect_weights, server)
            link.attempt(repeat if link.is_new else expect)
        began = time.perf_counter()
        answers = [
            link.exchange(Session.hear, again=partial(self._repeat, push, server)).numbers
            for server, link in enumerate(self.links)
        ]
        self._waited += time.perf_counter() - began
        version, norm, loss, updated, stop_at = answers[0][:5]
        self.version, self.stop_at = int(version), int(stop_at)
        self._keep(push, since=int(min(answer[0] for answer in answers)))
        dtype = self._weights.host[0].dtype
        return StepResult(
            loss=torch.tensor(loss / self.num_workers, dtype=torch.float64),
            grad_norm=torch.tensor(norm, dtype=dtype),
            updated=bool(updated),
            meet=push.step + 1 == self.stop_at,
        )

    def _arrive(self, numbers: Sequence[int]) -> None:
        """Waits for buckets that are still on their way."""
        for number in numbers:
            if number not in self._arrivals:
                continue
            began = time.perf_counter()
            for server, arrival in list(self._arrivals[number].items()):
                link = self.links[server]
                link.attempt(partial(_wait, arrival))
                if link.error is not None:
                    link.exchange(partial(self._receive_rest, server))
            del self._arrivals[number]
            self._weights.to_device(number)
            self._waited += time.perf_counter() - began

    def settle(self) -> None:
        """Waits until all weights that were asked for are there."""
        self._arrive(range(len(self.layout.buckets)))

    def fetch(self) -> None:
        """Takes the servers' weights as they are now."""
        self.settle()
        asks = [partial(self._ask_for_weights, server) for server in range(len(self.links))]
        for link, ask in zip(self.links, asks, strict=True):
            link.attempt(ask)
        answers = [
            link.exchange(Session.hear, again=ask).numbers for link, ask in zip(self.links, asks, strict=True)
        ]
        self.version = int(answers[0][0])
        self.settle()

    def _ask_for_weights(self, server: int, session: Session) -> None:
        session.tell(Op.FETCH)
        self._expect_weights(server, session)

    def place(self) -> None:
        """Makes this model's weights the servers'. The loss of a server meanwhile ends the job."""
        self.settle()
        for link in self.links:
            link.is_new = False
            link.session.tell(Op.PLACE)
        for number in range(len(self.layout.buckets)):
            self._send_bucket(number, self._weights.on_host(number))
        self._finish_sending()
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

    def load(self, reader: StateReader, *, leads: bool) -> None:
        """Takes a checkpoint, which the rank that ``leads`` gives to the servers too."""
        self.settle()
        load_weights(reader, self.replica.module)
        if leads:
            state.load_optimizer(self, reader)
            self.place()
        self.meet({"loaded": torch.ones(())})

    def meet(self, sums: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The sums over all workers, by the first server; waits for them."""
        self.settle()
        vector = flatten(sums)
        self._meetings += 1

        def talk(session: Session) -> Tensor:
            session.tell(Op.MEET, self.done, self._meetings, vector.numel())
            session.send(vector)
            return session.receive(torch.empty_like(vector))

        return unflatten(self.links[0].exchange(talk), sums)

    def tally(self, sums: Mapping[str, Tensor], *, vote: bool) -> dict[str, Tensor]:
        """The sums of what every worker sent last, this one's included; waits for nobody."""
        vector = flatten(sums)

        def talk(session: Session) -> Tensor:
            session.tell(Op.TALLY, vote, vector.numel())
            session.send(vector)
            self.stop_at = int(session.hear().numbers[0])
            return session.receive(torch.empty_like(vector))

        return unflatten(self.links[0].exchange(talk), sums)

    @property
    def may_stop(self) -> bool:
        """Whether this is the step at which all workers stop, where one has asked to."""
        return 0 < self.stop_at <= self.done

    def measures(self) -> dict[str, float]:
        """This worker's numbers per step, and the first server's, since they were last asked for."""
        facts: dict[str, float] = self.links[0].exchange(lambda session: session.ask(Op.FACTS)).text
        steps = max(self._steps, 1)
        sent = sum(link.session.sent for link in self.links)
        received = sum(link.session.received for link in self.links)
        own = {
            "waited_seconds": self._waited / steps,
            "push_seconds": self._pushing / steps,
            "pushed_mb": sent / steps / 1e6,
            "pulled_mb": received / steps / 1e6,
        }
        self._waited, self._pushing, self._steps = 0.0, 0.0, 0
        for link in self.links:
            link.session.sent = link.session.received = 0
        return {"staleness": facts.pop("staleness"), **own, **facts}

    def join(self) -> int:
        """Enters the running job with its weights; the step to begin at."""
        told = -1
        for link in self.links:
            told = int(link.exchange(lambda session: session.ask(Op.JOIN, told)).numbers[0])  # noqa: B023
        self.done = told
        self.fetch()
        return told

    def leave(self) -> None:
        """Says that nothing more will come, and waits until that is known."""
        self.settle()
        for link in self.links:
            link.exchange(lambda session: session.ask(Op.LEAVE))

    def _keep(self, push: SentPush, *, since: int) -> None:
        """Keeps what was answered but is in no update yet: steps from ``since`` on."""
        self._kept = [kept for kept in self._kept if kept.step >= since]
        if push.step >= since and self._keeps_pushes:
            self._kept.append(push.copy())

    def _repeat_answered(self, server: int, session: Session) -> None:
        for push in self._kept:
            push.send(session, self.layout, server=server, op=Op.AGAIN)

    def _repeat(self, push: SentPush, server: int, session: Session) -> None:
        push.send(session, self.layout, server=server, op=Op.STEP)
        self._expect_weights(server, session)

    def _receive_rest(self, server: int, session: Session) -> None:
        """Of a server that took over: its weights, where those of the lost one had not come yet."""
        waiting = [number for number, arrivals in self._arrivals.items() if server in arrivals]
        for number, part in enumerate(fetched(session, self._weights.host, self.layout, server=server)):
            if number in waiting:
                self._weights.host[number][self.layout.buckets[number].cuts[server]] = part
        for number in waiting:
            del self._arrivals[number][server]


def _wait(message: Pending, session: Session) -> None:
    message.wait()


def targets_of(microbatches: Sequence[Batch]) -> int:
    """Targets that these microbatches have."""
    return sum(int((batch.tensors["labels"] != IGNORED).sum()) for batch in microbatches)
