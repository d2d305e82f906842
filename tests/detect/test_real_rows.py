"""Every linear layer of a real model on real text: no alarm, and thresholds that are close."""

import pytest
import torch

from aftershock.detect import check_rows, linear_checksum, rounding_of
from aftershock.models import load
from demo_model import SPEC, needs_demo_model

TEXT = "The river rose after three days of rain, and the old bridge had to be closed until the water fell again."


@needs_demo_model
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_real_activations_never_alarm_and_come_close(dtype):
    model = load(SPEC, dtype)
    rounding, strains, alarms = rounding_of(model.dtype, "cpu"), [], []
    layers = [part for part in model.module.modules() if isinstance(part, torch.nn.Linear)]

    def check(part, inputs, outputs):
        found = check_rows(inputs[0], outputs, linear_checksum(part.weight, part.bias), rounding)
        alarms.append(found.wrong.sum())
        strains.append((found.deviation.abs() / found.threshold).max())

    for part in layers:
        part.register_forward_hook(check)
    with torch.inference_mode():
        model.module(input_ids=model.tokenizer(TEXT, return_tensors="pt")["input_ids"])
    assert len(alarms) == len(layers) == 30 * 7 + 1
    assert not any(alarms)
    assert 0.1 < float(max(strains)) < 0.7
