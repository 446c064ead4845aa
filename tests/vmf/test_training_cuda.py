"""Training on a GPU: each precision learns, and a stopped run goes on."""

import math

import pytest

from vmf.training import evaluate, resumed_config, train
from vmf.training.logs import Logs

pytestmark = pytest.mark.gpu


class Crash(BaseException):
    """Ends a run where nothing may catch it."""


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_a_gpu_trains_in_each_precision_and_goes_on(settings, precision, monkeypatch):
    settings |= {"device": "cuda", "precision": precision, "deterministic": True}
    whole = train(**settings | {"out": settings["out"] + "-whole"})
    cpu = train(
        **settings | {"device": "cpu", "precision": "fp32", "out": settings["out"] + "-cpu"}
    )
    assert math.isfinite(whole.loss) and abs(whole.loss - cpu.loss) < 0.1

    step = Logs.step

    def crashing(logs, epoch, batch_size):
        step(logs, epoch, batch_size)
        if epoch == 1:
            raise Crash

    monkeypatch.setattr(Logs, "step", crashing)
    with pytest.raises(Crash):
        train(**settings)
    monkeypatch.undo()
    again = train(resumed_config(settings["out"]))
    assert again.steps == whole.steps
    assert abs(again.loss - whole.loss) < 1e-3
    on_gpu = evaluate(again.folder, settings["data"], device="cuda", workers=0)
    assert on_gpu.count == 6
