"""The process of one revision: answers one line of JSON with one line of JSON.

    {"open": 3}                           -> {"backend": "cpu", "wrong": {"contiguous": null, ...}}
    {"time": "contiguous", "calls": 5}    -> {"seconds": 0.0013}

It gets the arguments of `python -m bench`, so that both revisions number the same cases.
"""

import json
import os
import sys
from collections.abc import Callable, Iterable
from typing import Any

import torch

import vmf_kernels
from bench import machine, options, suite
from bench.contenders import Call, backend_of, check_ours, describe, truth
from bench.op import FORWARD, LAYOUTS
from bench.ops import BENCHES
from bench.suite import Plan, Task


class Server:
    """Holds the calls of one case at a time.

    Args:
        plan: what to measure.
        todo: the comparisons, as both revisions number them.
    """

    def __init__(self, plan: Plan, todo: list[Task]) -> None:
        self.plan, self.todo = plan, todo
        self.calls: dict[str, Call] = {}
        self.mode = FORWARD

    def answer(self, message: dict[str, Any]) -> dict[str, Any]:
        if "open" in message:
            return self.open(self.todo[message["open"]])
        with torch.set_grad_enabled(self.mode != FORWARD):
            work = self.calls[message["time"]].work(self.mode)
            return {"seconds": self.plan.clock(work, message["calls"])}

    def open(self, task: Task) -> dict[str, Any]:
        """Makes the tensors of a case, and checks the numbers in both layouts."""
        bench, case, mode, dtype = task.bench, task.case, task.mode, task.dtype
        device = self.plan.device
        self.calls, self.mode = {}, mode
        torch.manual_seed(0)
        inputs = bench.inputs(case)
        wrong: dict[str, str | None] = {}
        try:
            backend = backend_of(bench, case, device, dtype)
            expected = truth(bench, case, inputs, mode, dtype, device)
        except Exception as error:  # an older revision may lack anything
            return {"backend": "none", "wrong": dict.fromkeys(LAYOUTS, describe(error))}
        for layout in LAYOUTS:
            call = Call(bench.ours, case, inputs, bench.features, layout, dtype, device)
            try:
                wrong[layout] = check_ours(call, mode, expected, dtype, device)
            except Exception as error:
                wrong[layout] = describe(error)
            self.calls[layout] = call
        return {"backend": backend, "wrong": wrong}


def serve(requests: Iterable[str], reply: Callable[[dict[str, Any]], None], server: Server) -> None:
    """Answers every request, after a first line that says who this is."""
    reply({"path": vmf_kernels.__file__, "kernels": machine.kernels(), "cases": len(server.todo)})
    for line in requests:
        reply(server.answer(json.loads(line)))


def main() -> None:
    """Serves standard input until it ends."""
    parser = options.parser()
    arguments = parser.parse_args()
    plan = options.plan(parser, arguments)
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    # Whatever else is printed must not come between the answers.
    with os.fdopen(os.dup(1), "w", buffering=1) as answers:
        os.dup2(2, 1)

        def reply(message: dict[str, Any]) -> None:
            answers.write(json.dumps(message) + "\n")
            answers.flush()

        serve(sys.stdin, reply, Server(plan, suite.tasks(list(BENCHES.values()), plan)))


if __name__ == "__main__":
    main()
